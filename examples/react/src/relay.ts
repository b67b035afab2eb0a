import type { Conversation, ConversationList, MessageList, ModelList, Message, ProblemBody } from './types'

/** Where the relay is: its own address (CORS), or `/api` to go through Vite's proxy. */
export const relayUrl: string = import.meta.env.VITE_RELAY_URL ?? 'http://localhost:8001'

/**
 * What the relay answered instead (problem+json); `status` is 0 if it can't be reached. `message` is for people.
 * `retryAfter` are the seconds after which it may get better by itself, if it may.
 */
export class Problem extends Error {
  readonly status: number
  readonly retryAfter?: number

  constructor(status: number, message: string, retryAfter?: number) {
    super(message)
    this.status = status
    this.retryAfter = retryAfter
  }
}

const SOON = 1.5 // s
const LONGEST = 16 // s between two tries
const MOST = 200_000 // code points, the relay's MAX_MESSAGE_CHARS

/** The JSON of a success; a `Problem` if there is none. */
export async function request<T = void>(method: string, path: string, body?: object, signal?: AbortSignal): Promise<T> {
  const response = await respond(method, path, body, signal)
  if (response.status === 204) return undefined as T
  return response.json().catch(() => Promise.reject(unreachable())) // broken off in the middle
}

export type Begun = { id: string; model: string }

/**
 * Asks for a reply. It belongs to no connection, so it is left here, and joined by `follow`; whose it is the headers
 * tell, unless something on the way keeps them back.
 */
export async function begin(method: string, path: string, body?: object, signal?: AbortSignal): Promise<Begun | undefined> {
  const response = await respond(method, path, body, signal)
  void response.body?.cancel()
  const [id, model] = ['X-Message-Id', 'X-Model'].map((name) => response.headers.get(name))
  return id && model ? { id, model } : undefined
}

async function respond(method: string, path: string, body?: object, signal?: AbortSignal): Promise<Response> {
  const headers = { Accept: 'text/event-stream, application/json', ...(body && { 'Content-Type': 'application/json' }) }
  const init = { method, headers, body: body && JSON.stringify(body), signal }
  const response = await fetch(relayUrl + path, init).catch(() => Promise.reject(unreachable()))
  if (!response.ok) throw await problemOf(response)
  return response
}

const get = <T>(path: string, signal: AbortSignal) => request<T>('GET', path, undefined, signal)

/** With its ids a question is asked once, however often it is sent, and its new conversation is created once. */
export type Question = { to: string; isFirst: boolean; id: string; content: string; after?: string | null }

/** Asks until the relay has answered; what it would refuse for its text is refused before anything is sent for it. */
export async function ask(
  { to, isFirst, id, content, after }: Question,
  model: string | undefined,
  onWait: (why: Problem) => void,
  signal: AbortSignal,
): Promise<Begun | undefined> {
  const length = [...content].length
  if (!content.trim()) throw new Problem(422, 'There is nothing in the message.')
  if (length > MOST) throw new Problem(422, `The message has ${length} characters, and the relay takes ${MOST}.`)
  const create = () => request('POST', '/conversations', { id: to, default_model: model }, signal)
  if (isFirst) await insist(create, onWait, signal)
  return insist(() => begin('POST', `/conversations/${to}/messages`, { id, content, after }, signal), onWait, signal)
}

/** Sends what may come again until it is answered, after growing waits, given up or aborted; `onWait` hears why. */
async function insist<T>(send: () => Promise<T>, onWait: (why: Problem) => void, signal: AbortSignal): Promise<T> {
  for (let wait = 1; ; wait *= 2) {
    try {
      return await send()
    } catch (problem) {
      if (!(problem instanceof Problem && problem.retryAfter) || wait > LONGEST || signal.aborted) throw problem
      onWait(problem)
      await pause(Math.max(wait, problem.retryAfter), signal)
    }
  }
}

const pause = (seconds: number, signal: AbortSignal) =>
  new Promise<unknown>((resolve) => {
    setTimeout(resolve, seconds * 1000)
    signal.addEventListener('abort', resolve)
  })

/** An id nobody else has; `crypto.randomUUID` is there on secure origins only, this on all. */
export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')

/** The message that was stopped, none if no reply is in progress. */
export const stopReply = (id: string) => request<Message | undefined>('DELETE', `/conversations/${id}/stream`)

/** Why a stream was refused, which `EventSource` doesn't tell: it is asked for once more. None if there is nothing to send. */
export async function refusalOf(path: string): Promise<Problem | undefined> {
  try {
    await begin('GET', path)
  } catch (problem) {
    return problem as Problem
  }
}

export const getModels = () => request<ModelList>('GET', '/models')

/** The messages of a conversation, none without an id. */
export async function getMessages(id: string, signal: AbortSignal): Promise<Message[]> {
  if (!id) return []
  return (await get<MessageList>(`/conversations/${id}/messages`, signal)).messages
}

/** So many pages of conversations, newest first, and the one with this id however old it is; whether there are more. */
export async function getConversations(pages: number, id: string, signal: AbortSignal) {
  const conversations: Conversation[] = []
  let cursor: string | null = ''
  for (; pages > 0 && cursor !== null; pages--) {
    const page: ConversationList = await get(`/conversations?limit=200&cursor=${cursor}`, signal)
    conversations.push(...page.conversations)
    cursor = page.next_cursor
  }
  const isListed = !id || conversations.some((one) => one.id === id)
  if (!isListed) conversations.push(...(await unlessGone(get<Conversation>(`/conversations/${id}`, signal))))
  return { conversations, more: cursor !== null }
}

const unlessGone = <T>(got: Promise<T>) =>
  got.then((it) => [it], (problem: Problem) => (problem.status === 404 ? [] : Promise.reject(problem)))

async function problemOf(response: Response): Promise<Problem> {
  const { status, headers } = response
  if (headers.get('Content-Type')?.startsWith('application/problem+json')) {
    const { detail }: ProblemBody = await response.json()
    return new Problem(status, detail, Number(headers.get('Retry-After')) || undefined)
  }
  // An answer that isn't the relay's own comes from a proxy: it can't reach the relay, or it refuses by itself.
  return status >= 500 ? unreachable() : new Problem(status, `Something before the relay refused, with status ${status}.`)
}

function unreachable(): Problem {
  const { href, origin } = new URL(relayUrl, location.href)
  // A browser doesn't tell the one from the other.
  const refused = origin === location.origin ? '' : ` If so, is ${location.origin} in its CORS_ORIGINS?`
  return new Problem(0, `Can’t reach the relay at ${href.replace(/\/$/, '')}. Is it running?${refused}`, SOON)
}
