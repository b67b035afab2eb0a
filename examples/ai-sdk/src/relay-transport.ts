import type { ChatTransport, UIMessage, UIMessageChunk } from 'ai'
import { EventSourceParserStream } from 'eventsource-parser/stream'

/** What the relay tells of a message beside its text; all of it once an answer has ended. */
export type RelayMetadata = {
  model?: string | null
  options?: object | null
  status?: 'complete' | 'streaming' | 'stopped' | 'failed'
  finish_reason?: string | null
  usage?: { prompt_tokens?: number; completion_tokens?: number; cost?: number | null } | null
  served_model?: string | null
  provider?: string | null
  error?: { code: number; message: string; retryable: boolean; retry_after: number | null } | null
}
export type RelayMessage = UIMessage<RelayMetadata>

/** Why there is no answer, in words for people; `retryAfter` are the seconds after which it may get better by itself. */
export class RelayError extends Error {
  readonly status: number // 0: the relay can't be reached
  readonly retryAfter?: number

  constructor(status: number, message: string, retryAfter?: number) {
    super(message)
    this.status = status
    this.retryAfter = retryAfter
  }
}

export type RelayTransport = ChatTransport<RelayMessage> & {
  resumeStreamIsReplay: true
  /** The messages that `useChat` begins with, without an answer in progress: that one comes by `resume: true`. */
  load(chatId: string): Promise<RelayMessage[]>
  /** Ends the answer and keeps what has come of it. `stop` of `useChat` only leaves it, as a tab that is closed does. */
  stop(chatId: string): Promise<void>
  /** Any other request to the relay. Throws a `RelayError`. */
  call(method: string, path: string, body?: object): Promise<Response>
}

type Options = {
  headers?: Record<string, string>
  /** What new conversations are made with: `default_model`, `system_prompt`, … */
  conversation?: object
  /** Hears why something is tried again, and of nothing once it has succeeded. */
  onWait?: (why?: RelayError) => void
}

type Annotation = { url: string; title?: string | null }
type Stored = RelayMetadata & {
  id: string
  role: 'user' | 'assistant'
  content: string
  reasoning: string | null
  annotations?: Annotation[] | null
  last_event_id: string | null
}
type Event = Partial<Stored> & { message_id?: string; done?: true }

const TRIES = 6
const LONGEST = 8 // s between two tries

/**
 * Lets `useChat` talk to the relay, whose conversations have the ids of the chats. Each question is asked once, however
 * often it has to be sent; an answer goes on when its connection is lost, exactly where it was. `body` of a request may
 * name `model` and `options`.
 */
export function relayTransport(url: string, { headers, conversation, onWait }: Options = {}): RelayTransport {
  const known = new Map<string, Map<string, string>>() // of each chat: the ids of its messages that say something, here and at the relay
  const unread = new Map<string, Stored>() // of each chat: the answer that was in progress when it was loaded
  const sending = new Map<string, AbortController>() // of each chat: ends the tries

  const call = async (method: string, path: string, body?: object, signal?: AbortSignal) => {
    const own = { Accept: 'text/event-stream, application/json', ...(body && { 'Content-Type': 'application/json' }) }
    const init = { method, headers: { ...own, ...headers }, body: body && JSON.stringify(body), signal }
    const response = await fetch(url + path, init).catch((error: unknown) => {
      throw signal?.aborted ? error : unreachable(url)
    })
    if (!response.ok) throw await refusal(response)
    return response
  }

  /** Calls until there is an answer, or no hope; `leave` ends a call, `giveUp` only the waiting for the next one. */
  const insist = async (send: () => Promise<Response>, tries: number, leave?: AbortSignal, giveUp = leave) => {
    for (let wait = 1; ; wait = Math.min(2 * wait, LONGEST)) {
      try {
        return await send()
      } catch (error) {
        if (!(error instanceof RelayError && error.retryAfter) || --tries <= 0) throw error
        onWait?.(error)
        await pause(Math.max(wait, error.retryAfter), giveUp)
        leave?.throwIfAborted()
        giveUp?.throwIfAborted()
      } finally {
        onWait?.()
      }
    }
  }

  const follow = (chatId: string, lastEventId = '', signal?: AbortSignal) =>
    call('GET', `/conversations/${chatId}/stream?join=true&last_event_id=${encodeURIComponent(lastEventId)}`, undefined, signal)

  /** The answer, over as many connections as it takes; `begin` is asked until there is an event to go on from. */
  async function* read(chatId: string, response: Response, begin: () => Promise<Response>, signal?: AbortSignal, from?: Stored) {
    const parts = new Parts()
    let last = from?.last_event_id ?? ''
    let reply = from?.id
    if (from) yield* parts.add(from)
    for (;;) {
      if (response.status === 204) return yield* parts.end() // deleted meanwhile
      try {
        for await (const { data, id } of events(response)) {
          const event: Event = JSON.parse(data)
          reply = event.message_id ?? reply
          if (reply && (event.content || event.reasoning)) known.get(chatId)?.set(reply, reply)
          yield* parts.add({ ...event, id: event.message_id })
          last = id ?? last
          if (event.error) throw new RelayError(event.error.code, event.error.message, event.error.retry_after ?? undefined)
          if (event.done) return
        }
      } catch (error) {
        if (!(error instanceof TypeError)) throw error // that one is the network's
      }
      await pause(1, signal)
      response = await insist(last ? () => follow(chatId, last, signal) : begin, Infinity, signal)
    }
  }

  const load = async (chatId: string) => {
    const get = () => call('GET', `/conversations/${chatId}/messages`)
    const response = await insist(get, Infinity).catch(orNone)
    const { messages }: { messages: Stored[] } = response ? await response.json() : { messages: [] }
    known.set(chatId, new Map(messages.filter(({ content, reasoning }) => content || reasoning).map(({ id }) => [id, id])))
    const last = messages.at(-1)
    if (last?.status === 'streaming') unread.set(chatId, last)
    else unread.delete(chatId)
    return messages.filter((message) => message.status !== 'streaming').map(shown)
  }

  return {
    resumeStreamIsReplay: true,
    call,
    load,
    async sendMessages({ chatId, messages, abortSignal, body }) {
      if (!known.has(chatId) && messages.length > 1) await load(chatId)
      const ids = known.get(chatId) ?? new Map<string, string>()
      known.set(chatId, ids)
      unread.delete(chatId)
      const question = messages.at(-1)!
      const before = messages.slice(0, -1).filter(({ id }) => ids.has(id)).at(-1) // the last one that the relay has, too
      const isAtEnd = before?.id === [...ids.keys()].at(-1)
      const sent = {
        id: ids.has(question.id) ? newId() : question.id, // a question that is edited, or asked again, is another one
        content: question.parts.map((part) => (part.type === 'text' ? part.text : '')).join(''),
        ...(!isAtEnd && { after: before ? ids.get(before.id) : null }),
        ...chosen({ ...question.metadata, ...body }),
      }
      const giveUp = new AbortController()
      sending.set(chatId, giveUp)
      const create = () => call('POST', '/conversations', { ...conversation, id: chatId }, abortSignal)
      const ask = () => call('POST', `/conversations/${chatId}/messages`, sent, abortSignal)
      try {
        if (ids.size === 0) await insist(create, TRIES, abortSignal, giveUp.signal)
        const response = await insist(ask, TRIES, abortSignal, giveUp.signal)
        forgetAfter(ids, before?.id)
        ids.set(question.id, sent.id)
        if (giveUp.signal.aborted) await call('DELETE', `/conversations/${chatId}/stream`) // it came after the first one
        return streamOf(read(chatId, response, ask, abortSignal))
      } finally {
        sending.delete(chatId)
      }
    },
    async reconnectToStream({ chatId, abortSignal }) {
      const reply = unread.get(chatId)
      const join = () => follow(chatId, reply?.last_event_id ?? '', abortSignal)
      const response = await insist(join, TRIES, abortSignal).catch(orNone)
      if (!response || (response.status === 204 && !reply)) return null
      return streamOf(read(chatId, response, join, abortSignal, reply))
    },
    async stop(chatId) {
      sending.get(chatId)?.abort()
      await insist(() => call('DELETE', `/conversations/${chatId}/stream`), TRIES).catch(orNone)
    },
  }
}

/** The parts of an answer: text and reasoning as they come, sources and what else is known at its end. */
class Parts {
  private count = 0
  private begun = false
  private open?: { type: 'text' | 'reasoning'; id: string }

  *add({ id, reasoning, content, annotations, done, error, ...rest }: Event): Generator<UIMessageChunk> {
    if (id && !this.begun) yield { type: 'start', messageId: id, messageMetadata: { model: rest.model, status: 'streaming' } }
    if (id) this.begun = true
    if (reasoning) yield* this.text('reasoning', reasoning)
    if (content) yield* this.text('text', content)
    if (!done && !error) return
    yield* this.end()
    yield* sources(annotations).map((source) => ({ ...source, type: 'source-url' as const }))
    const { model, finish_reason, usage, served_model, provider } = rest
    const status = error ? 'failed' : rest.status
    const metadata: RelayMetadata = error ? { status, error } : { model, status, finish_reason, usage, served_model, provider }
    yield { type: 'finish', messageMetadata: metadata }
  }

  *end(): Generator<UIMessageChunk> {
    if (this.open) yield { type: `${this.open.type}-end`, id: this.open.id }
    this.open = undefined
  }

  private *text(type: 'text' | 'reasoning', delta: string): Generator<UIMessageChunk> {
    if (this.open?.type !== type) {
      yield* this.end()
      this.open = { type, id: String(this.count++) }
      yield { type: `${type}-start`, id: this.open.id }
    }
    yield { type: `${type}-delta`, id: this.open.id, delta }
  }
}

function shown({ id, role, content, reasoning, annotations, ...metadata }: Stored): RelayMessage {
  const parts: RelayMessage['parts'] = []
  if (reasoning) parts.push({ type: 'reasoning', text: reasoning, state: 'done' })
  if (content) parts.push({ type: 'text', text: content, state: 'done' })
  parts.push(...sources(annotations).map((source) => ({ ...source, type: 'source-url' as const })))
  return { id, role, parts, metadata }
}

/** Each page once. */
function sources(annotations?: Annotation[] | null) {
  const pages = new Map(annotations?.map(({ url, title }) => [url, title]))
  return [...pages].map(([url, title]) => ({ sourceId: url, url, title: title ?? undefined }))
}

async function* events(response: Response) {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream()).getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    reader.cancel().catch(() => {}) // leaves the connection
  }
}

function streamOf<T>(chunks: AsyncGenerator<T>): ReadableStream<T> {
  return new ReadableStream<T>({
    async pull(controller) {
      const { done, value } = await chunks.next()
      if (done) controller.close()
      else controller.enqueue(value)
    },
    async cancel() {
      await chunks.return(undefined)
    },
  })
}

function unreachable(url: string): RelayError {
  const { origin } = globalThis.location ?? {} // a browser doesn't tell the one from the other
  const refused = origin && origin !== new URL(url, origin).origin ? ` If so, is ${origin} in its CORS_ORIGINS?` : ''
  return new RelayError(0, `Can’t reach the relay at ${url}. Is it running?${refused}`, 1)
}

async function refusal(response: Response): Promise<RelayError> {
  const { status, headers } = response
  const isOurs = headers.get('Content-Type')?.startsWith('application/problem+json')
  if (isOurs) return new RelayError(status, (await response.json()).detail, Number(headers.get('Retry-After')) || undefined)
  // A proxy's own: it can't reach the relay, or it refuses by itself.
  return new RelayError(status, `Something before the relay answers with status ${status}.`, status >= 500 ? 1 : undefined)
}

function orNone(error: unknown): undefined {
  if (!(error instanceof RelayError && error.status === 404)) throw error
}

function chosen({ model, options }: { model?: unknown; options?: unknown }) {
  return { ...(model ? { model } : {}), ...(options ? { options } : {}) }
}

function forgetAfter(ids: Map<string, string>, id?: string) {
  const all = [...ids.keys()]
  for (const later of all.slice(id === undefined ? 0 : all.indexOf(id) + 1)) ids.delete(later)
}

const pause = (seconds: number, signal?: AbortSignal) =>
  new Promise<unknown>((resolve) => {
    setTimeout(resolve, seconds * 1000)
    signal?.addEventListener('abort', resolve)
  })

/** `crypto.randomUUID` is there on secure origins only, this on all. */
const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
