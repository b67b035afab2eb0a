import { refusalOf, relayUrl } from './relay'
import type { Message, Problem, ReasoningEvent, ReplyEvent, StartEvent } from './relay'

const blank: Message = {
  id: '',
  role: 'assistant',
  content: '',
  model: null,
  timestamp: '',
  status: 'streaming',
  finish_reason: null,
  reasoning: null,
  usage: null,
  error: null,
  generation_id: null,
}

/**
 * Follows the reply that a conversation owes or is getting, from its beginning; returns how to leave it.
 *
 * `onReply` gets the message as far as it has come, last with a status other than `streaming`. A lost connection is
 * taken up again by EventSource itself, which sends the last id: what follows is exactly the rest, so it is appended.
 * `onLost` hears of it. `onProblem` gets the reason if the relay refused and EventSource has given up.
 */
export function follow(
  id: string,
  onReply: (reply: Message) => void,
  onLost: () => void,
  onProblem: (problem: Problem) => void,
): () => void {
  const path = `/conversations/${id}/stream`
  const source = new EventSource(relayUrl + path)
  let reply = blank
  const grow = (fields: Partial<Message>) => onReply((reply = { ...reply, ...fields }))

  source.addEventListener('start', ({ data }) => {
    const { message_id, model }: StartEvent = JSON.parse(data)
    grow({ id: message_id, model })
  })
  source.addEventListener('reasoning', ({ data }) => {
    const event: ReasoningEvent = JSON.parse(data)
    grow({ reasoning: (reply.reasoning ?? '') + event.reasoning })
  })
  source.onmessage = ({ data }) => {
    const event: ReplyEvent = JSON.parse(data)
    if ('content' in event) return grow({ content: reply.content + event.content })
    source.close() // or it would connect again
    if ('error' in event) grow({ status: 'failed', error: event.error })
    else grow({ status: event.status, finish_reason: event.finish_reason, usage: event.usage })
  }
  source.onerror = async () => {
    if (source.readyState === EventSource.CLOSED) onProblem(await refusalOf(path))
    else onLost()
  }
  return () => source.close()
}

/** Whether there is a reply to follow: one is being written, or the last question has none yet. */
export function isOwed(messages: Message[]): boolean {
  const last = messages.at(-1)
  return last?.role === 'user' || last?.status === 'streaming'
}

/** The messages with the reply as far as it has come; until it has caught up, what was read of it is the longer text. */
export function withReply(messages: Message[], reply: Message): Message[] {
  const known = messages.find(({ id }) => id === reply.id)
  if (!known) return [...messages, reply]
  const content = longer(known.content, reply.content)
  const reasoning = longer(known.reasoning ?? '', reply.reasoning ?? '') || null
  return messages.map((message) => (message === known ? { ...reply, content, reasoning } : message))
}

const longer = (a: string, b: string) => (a.length > b.length ? a : b)
