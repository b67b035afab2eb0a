// node node.mjs <targets.json: reads all of them at once, each with the library for Node that it names.
import { readFileSync } from 'node:fs'
import { jsonSchema, parseJsonEventStream } from '@ai-sdk/provider-utils'
import axios from 'axios'
import { EventSource } from 'eventsource'
import EventSource2 from 'eventsource-2'
import { createEventSource } from 'eventsource-client'
import { createParser } from 'eventsource-parser'
import { EventSourceParserStream } from 'eventsource-parser/stream'
import launchdarkly from 'launchdarkly-eventsource'
import OpenAI from 'openai'
import { EventSource as UndiciEventSource, setGlobalDispatcher, Agent } from 'undici'
import { Events, eventSource, names, untilDone } from './events.mjs'

setGlobalDispatcher(new Agent())

function withId(target, last) {
  return { ...target.headers, ...(last && { 'Last-Event-ID': last }) }
}

const libraries = {
  eventsource: eventSource(({ url }) => new EventSource(url)),
  'eventsource 2': eventSource(({ url }) => new EventSource2(url)),
  undici: eventSource(({ url }) => new UndiciEventSource(url)),

  'eventsource-client': ({ url, method, headers, body }, events) =>
    new Promise((resolve) => {
      const source = createEventSource({
        url,
        method,
        headers,
        body,
        onMessage: ({ event, data }) => void events.take(event ?? 'message', data),
        onDisconnect: () => setTimeout(() => source.readyState === 'closed' && resolve('ended by the relay')),
      })
    }),

  'launchdarkly-eventsource': ({ url, method, headers, body }, events) =>
    new Promise((resolve) => {
      const source = new launchdarkly.EventSource(url, { method, headers, body, initialRetryDelayMillis: 20 })
      for (const name of names) source.addEventListener(name, (event) => events.take(name, event.data))
      source.addEventListener('error', () => {})
      source.addEventListener('closed', () => resolve('ended by the relay'))
    }),

  'eventsource-parser': (target, events) => {
    let last
    return untilDone(async () => {
      const { url, method, body } = target
      const response = await fetch(url, { method, body, headers: withId(target, last) })
      const parsed = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())
      for await (const { id, event, data } of parsed) {
        last = id ?? last
        if (events.take(event ?? 'message', data)) return true
      }
    })
  },

  axios: (target, events) => {
    let [last, ended] = [undefined, false]
    return untilDone(async () => {
      if (ended) return true
      const { url, method, body } = target
      const headers = withId(target, last)
      const { data } = await axios({ url, method, data: body, headers, responseType: 'stream' })
      const onEvent = ({ id, event, data }) => {
        last = id ?? last
        ended ||= events.take(event ?? 'message', data)
      }
      const [parser, decoder] = [createParser({ onEvent }), new TextDecoder()]
      for await (const bytes of data) parser.feed(decoder.decode(bytes, { stream: true }))
      return ended
    })
  },

  // These two keep ids and names to themselves: the same question again, and its answer from the beginning.

  '@ai-sdk/provider-utils': ({ url, method, headers, body }, events) =>
    untilDone(async () => {
      events.again()
      const response = await fetch(url, { method, headers, body })
      const parts = parseJsonEventStream({ stream: response.body, schema: jsonSchema({}) })
      for await (const { value } of parts) if (events.take(nameOf(value), JSON.stringify(value))) return true
    }),

  openai: ({ url, body }, events) => {
    const client = new OpenAI({ baseURL: new URL('.', url).href, apiKey: 'none', maxRetries: 5 })
    return untilDone(async () => {
      events.again()
      const headers = { Accept: 'text/event-stream' }
      const parts = await client.post('/messages', { body: JSON.parse(body), stream: true, headers })
      for await (const value of parts) if (events.take(nameOf(value), JSON.stringify(value))) return true
    })
  },
}

const nameOf = (value) => ('reasoning' in value ? 'reasoning' : 'question_id' in value ? 'start' : 'message')

const awake = setInterval(() => {}, 60_000) // some libraries let Node exit while they wait to come back
const tell = (line) => process.stdout.write(`${line}\n`)
const targets = JSON.parse(readFileSync(0, 'utf8'))
await Promise.all(
  targets.map(async (target, number) => {
    const events = new Events(number, tell)
    events.ended(await libraries[target.library](target, events))
  }),
)
clearInterval(awake)
process.exit()
