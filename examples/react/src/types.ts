/** What the relay says, as far as this chat reads it: openapi.json, which a test compares it with, has all of it. */

export type Conversation = {
  id: string
  title: string | null
  default_model: string
  options: Record<string, unknown> | null
  cost: number | null
}

export type Message = {
  id: string
  role: 'user' | 'assistant'
  content: string
  reasoning: string | null
  model: string | null
  status: 'complete' | 'streaming' | 'stopped' | 'failed'
  finish_reason: string | null
  usage: Usage | null
  error: Failure | null
  last_event_id: string | null
  served_model: string | null
  provider: string | null
  annotations: Citation[] | null
}

export type Citation = { url: string; title: string | null }

export type Usage = { prompt_tokens?: number | null; completion_tokens?: number | null; cost?: number | null }

export type Failure = { code: number; message: string; retryable: boolean; retry_after: number | null }

export type Model = {
  id: string
  name?: string | null
  description?: string | null
  pricing?: { prompt?: string | null; completion?: string | null } | null
}

/** The data of the events: `start`, then text and `reasoning`, then `done` or `error`. */
export type ReplyEvent =
  | { content: string }
  | ({ done: true } & Pick<Message, 'status' | 'finish_reason' | 'usage' | 'served_model' | 'provider' | 'annotations'>)
  | { error: Failure }
export type ReasoningEvent = { reasoning: string }

export type ConversationList = { conversations: Conversation[]; next_cursor: string | null }
export type MessageList = { messages: Message[] }
export type ModelList = { models: Model[] }

/** An error's body (RFC 9457). */
export type ProblemBody = { detail: string }
