// In a page: `read(target, number)` reads with the library for browsers that the target names; `tell` is the driver's.
import { EventSourcePolyfill } from 'event-source-polyfill'
import { EventSource as ExtendedEventSource } from 'extended-eventsource'
import { fetchEventSource as fortaine } from '@fortaine/fetch-event-source'
import { fetchEventSource as microsoft } from '@microsoft/fetch-event-source'
import ReconnectingEventSource from 'reconnecting-eventsource'
import axios from 'axios'
import { createParser } from 'eventsource-parser'
import { SSE } from 'sse.js'
import { closedAtDone, eventSource, Events, fetchEventSource, untilDone } from './events.mjs'

const libraries = {
  EventSource: eventSource(({ url }) => new EventSource(url)),
  'event-source-polyfill': eventSource(({ url }) => new EventSourcePolyfill(url)),
  'reconnecting-eventsource': closedAtDone(({ url }) => new ReconnectingEventSource(url, { max_retry_time: 100 })),
  '@microsoft/fetch-event-source': fetchEventSource(microsoft),
  '@fortaine/fetch-event-source': fetchEventSource(fortaine),

  'extended-eventsource': closedAtDone(
    ({ url, method, headers, body }) => new ExtendedEventSource(url, { method, headers, body, retry: 20 }),
  ),

  'sse.js': closedAtDone(({ url, method, headers, body }) => new SSE(url, { method, headers, payload: body, autoReconnect: true })),

  'axios (browser)': (target, events) => {
    let [last, ended] = [undefined, false]
    return untilDone(async () => {
      if (ended) return true
      const { url, method, body } = target
      const headers = { ...target.headers, ...(last && { 'Last-Event-ID': last }) }
      let taken = 0
      const parser = createParser({
        onEvent: ({ id, event, data }) => {
          last = id ?? last
          ended ||= events.take(event ?? 'message', data)
        },
      })
      const onDownloadProgress = ({ event }) => {
        const text = event.target.responseText
        parser.feed(text.slice(taken))
        taken = text.length
      }
      await axios({ url, method, data: body, headers, responseType: 'text', transformResponse: [], onDownloadProgress })
      return ended
    })
  },
}

window.read = async (target, number) => {
  const events = new Events(number, (line) => void window.tell(line))
  events.ended(await libraries[target.library](target, events))
}
