import { refusalOf, relayUrl } from './relay'
import type { Problem } from './relay'
import type { Message, ReasoningEvent, ReplyEvent } from './types'

/**
 * Follows a reply in progress from where it has been read to; returns how to leave it. Nothing is started by it.
 *
 * `onReply` gets the message as far as it has come, last with a status other than `streaming`. A lost connection is
 * taken up again by EventSource itself, which sends the last id: what follows is exactly the rest, so it is appended.
 * `onLost` hears of it. `onProblem` gets the reason if EventSource has given up, none if the relay has
 * nothing to send: the reply is over, or gone.
 */
export function follow(
  id: string,
  reply: Message,
  onReply: (reply: Message) => void,
  onLost: () => void,
  onProblem: (problem?: Problem) => void,
): () => void {
  const path = `/conversations/${id}/stream?join=true&last_event_id=${encodeURIComponent(reply.last_event_id ?? '')}`
  const source = new EventSource(relayUrl + path)
  const grow = (fields: Partial<Message>) => onReply((reply = { ...reply, ...fields }))

  source.onopen = () => onReply(reply)
  source.addEventListener('reasoning', ({ data, lastEventId }) => {
    const event: ReasoningEvent = JSON.parse(data)
    grow({ reasoning: (reply.reasoning ?? '') + event.reasoning, last_event_id: lastEventId })
  })
  source.onmessage = ({ data, lastEventId }) => {
    const event: ReplyEvent = JSON.parse(data)
    if ('content' in event) return grow({ content: reply.content + event.content, last_event_id: lastEventId })
    source.close() // or it would connect again
    if ('error' in event) grow({ status: 'failed', error: event.error })
    else {
      const { status, finish_reason, usage, served_model, provider, annotations } = event
      grow({ status, finish_reason, usage, served_model, provider, annotations })
    }
  }
  let isLeft = false
  source.onerror = async () => {
    if (source.readyState !== EventSource.CLOSED) return onLost()
    const problem = await refusalOf(path)
    if (!isLeft) onProblem(problem)
  }
  return () => {
    isLeft = true
    source.close()
  }
}

/** The reply in progress, if there is one. */
export function inProgress(messages: Message[]): Message | undefined {
  const last = messages.at(-1)
  return last?.status === 'streaming' ? last : undefined
}
