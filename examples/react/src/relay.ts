import type { components } from './api'

type Schemas = components['schemas']
export type Conversation = Schemas['Conversation']
export type Message = Schemas['Message']
export type Model = Schemas['Model']
export type StartEvent = Schemas['StartEvent']
export type ReasoningEvent = Schemas['ReasoningEvent']
export type ReplyEvent = Schemas['ReplyEvent']

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
const MOST = 200_000 // code points, the relay's MAX_MESSAGE_CHARS

/** The JSON of a success; a `Problem` if there is none. */
export async function request<T = void>(method: string, path: string, body?: object, signal?: AbortSignal): Promise<T> {
  const headers = body && { 'Content-Type': 'application/json' }
  try {
    const response = await fetch(relayUrl + path, { method, headers, body: body && JSON.stringify(body), signal })
    if (!response.ok) throw await problemOf(response)
    return response.status === 204 ? (undefined as T) : await response.json()
  } catch (error) {
    throw error instanceof Problem ? error : unreachable() // never, or broken off in the middle
  }
}

const get = <T>(path: string, signal: AbortSignal) => request<T>('GET', path, undefined, signal)

/** Asks; what the relay would refuse for its text is refused before anything is sent or deleted for it. */
export async function ask(conversation: () => Promise<string>, content: string, inPlaceOf?: string): Promise<void> {
  const length = [...content].length
  if (!content.trim()) throw new Problem(422, 'There is nothing in the message.')
  if (length > MOST) throw new Problem(422, `The message has ${length} characters, and the relay takes ${MOST}.`)
  if (inPlaceOf) await unlessGone(request('DELETE', inPlaceOf))
  try {
    await request('POST', `/conversations/${await conversation()}/messages`, { content })
  } catch (error) {
    if (!inPlaceOf || !(error instanceof Problem)) throw error
    throw new Problem(410, `The old question is gone, the new one wasn’t taken and is still in the box. ${error.message}`)
  }
}

/** The message that was stopped, none if no reply is in progress. */
export const stopReply = (id: string) => request<Message | undefined>('DELETE', `/conversations/${id}/stream`)

/** Why a stream was refused, which `EventSource` doesn't tell: it is asked for once more. */
export async function refusalOf(path: string): Promise<Problem> {
  try {
    const response = await fetch(relayUrl + path, { headers: { Accept: 'text/event-stream' } })
    if (!response.ok && response.status !== 409) return await problemOf(response)
    await response.body?.cancel()
    return new Problem(0, 'The answer can’t be followed right now.', SOON) // or it has ended meanwhile: 409
  } catch {
    return unreachable()
  }
}

export const getModels = () => request<Schemas['ModelList']>('GET', '/models')

/** The messages of a conversation, none without an id. */
export async function getMessages(id: string, signal: AbortSignal): Promise<Message[]> {
  if (!id) return []
  return (await get<Schemas['MessageList']>(`/conversations/${id}/messages`, signal)).messages
}

/** So many pages of conversations, newest first, and the one with this id however old it is; whether there are more. */
export async function getConversations(pages: number, id: string, signal: AbortSignal) {
  const conversations: Conversation[] = []
  let cursor: string | null = ''
  for (; pages > 0 && cursor !== null; pages--) {
    const page: Schemas['ConversationList'] = await get(`/conversations?limit=200&cursor=${cursor}`, signal)
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
  // An answer that isn't the relay's own comes from a proxy that can't reach it.
  if (!response.headers.get('Content-Type')?.startsWith('application/problem+json')) return unreachable()
  const { status, detail }: Schemas['Problem'] = await response.json()
  return new Problem(status, detail, Number(response.headers.get('Retry-After')) || undefined)
}

function unreachable(): Problem {
  const { href, origin } = new URL(relayUrl, location.href)
  // A browser doesn't tell the one from the other.
  const refused = origin === location.origin ? '' : ` If so, is ${location.origin} in its CORS_ORIGINS?`
  return new Problem(0, `Can’t reach the relay at ${href.replace(/\/$/, '')}. Is it running?${refused}`, SOON)
}
