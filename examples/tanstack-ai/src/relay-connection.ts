import { EventType, type StreamChunk, type UIMessage } from '@tanstack/ai/client'
import type { ResumableConnectConnectionAdapter } from '@tanstack/ai-client'
import { EventSourceParserStream } from 'eventsource-parser/stream'

type Options = {
  headers?: Record<string, string>
  /** What new conversations are made with: `default_model`, `system_prompt`, … */
  conversation?: object
}

/** The relay's conversations as threads of `useChat({ threadId, connection, persistence: true })`; `stop` ends an answer. */
export function relayConnection(url: string, { conversation, headers }: Options = {}) {
  const known = new Map<string, string[]>() // of each thread: the ids of the messages that the relay has
  const asked = new Map<string, object>() // of each thread: the last question, which brings its answer however often it is sent
  const asking = new Map<string, Promise<Response>>()

  async function call(method: string, path: string, body?: object, signal?: AbortSignal, last = '', tries = 20): Promise<Response> {
    const own = { Accept: 'text/event-stream, application/json', ...(body && { 'Content-Type': 'application/json' }) }
    const init = { method, headers: { ...own, ...(last && { 'Last-Event-ID': last }), ...headers }, body: body && JSON.stringify(body) }
    const sent = fetch(`${url}/conversations${path}`, { ...init, signal })
    const response = await sent.catch(() => signal?.throwIfAborted())
    if (response?.ok) return response
    const problem = response?.headers.get('Content-Type')?.startsWith('application/problem+json') && (await response.json())
    const seconds = problem ? Number(response?.headers.get('Retry-After')) : 1
    if (!seconds || !tries) throw new Error(problem ? problem.detail : `Can’t reach the relay at ${url}.`)
    await pause(seconds)
    return call(method, path, body, signal, last, last ? tries : tries - 1)
  }

  async function* answer(threadId: string, kept: string[], signal?: AbortSignal): AsyncGenerator<StreamChunk> {
    for (let last = '', messageId = ''; ; await pause(1)) {
      asking.set(threadId, call('POST', `/${threadId}/messages`, asked.get(threadId), signal, last))
      const { body, status } = await asking.get(threadId)!
      if (status === 204) return // deleted meanwhile
      const events = body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream()).getReader()
      for (let read; (read = await events.read().catch(() => undefined))?.value; last = read.value.id ?? last) {
        const { question_id, reasoning, content, ...metadata } = JSON.parse(read.value.data)
        messageId = metadata.message_id ?? messageId
        if (!last) known.set(threadId, [...kept, question_id, messageId])
        if (!last) yield { type: EventType.TEXT_MESSAGE_START, messageId, role: 'assistant', metadata }
        if (reasoning) yield { type: EventType.REASONING_MESSAGE_CONTENT, messageId, delta: reasoning }
        if (content) yield { type: EventType.TEXT_MESSAGE_CONTENT, messageId, delta: content }
        if (!metadata.done && !metadata.error) continue
        yield { type: EventType.TEXT_MESSAGE_END, messageId, metadata: { status: 'failed', ...metadata } }
        if (metadata.error) throw new Error(metadata.error.message)
        return yield { type: EventType.RUN_FINISHED, threadId, runId: messageId }
      }
    }
  }

  return {
    async hydrate(threadId) {
      const { messages } = await (await call('GET', `/${threadId}/messages`, undefined, undefined, '', Infinity)).json()
      known.set(threadId, messages.map(({ id }: UIMessage) => id))
      const isActive = messages.at(-1)?.status === 'streaming' && messages.pop()
      const { id, content, model, options } = messages.at(-1) ?? {}
      asked.set(threadId, { id, content, model, options })
      return { messages: messages.map(shown), activeRun: isActive ? { runId: threadId } : null, interrupts: null }
    },
    joinRun: (threadId, signal) => answer(threadId, known.get(threadId)!.slice(0, -2), signal),
    async *connect(messages, data, signal, run) {
      const { threadId } = run!
      const [question, ...earlier] = [...(messages as UIMessage[])].reverse()
      const ids = known.get(threadId) ?? []
      const before = earlier.find(({ id }) => ids.includes(id))?.id
      const id = ids.includes(question!.id) ? `${question!.id}-${Date.now()}` : question!.id // asked again: another one
      const content = question!.parts.map((part) => (part.type === 'text' ? part.content : '')).join('')
      asked.set(threadId, { ...data, id, content, ...(before !== ids.at(-1) && { after: before ?? null }) })
      if (!ids.length) await call('POST', '', { ...conversation, id: threadId }, signal)
      yield* answer(threadId, before ? ids.slice(0, ids.indexOf(before) + 1) : [], signal)
    },
    async stop(threadId: string) {
      await asking.get(threadId) // a question that is still on its way
      await call('DELETE', `/${threadId}/stream`)
    },
  } satisfies ResumableConnectConnectionAdapter & { stop(threadId: string): Promise<void> }
}

function shown({ id, role, content, reasoning, ...metadata }: any): UIMessage {
  const thinking = reasoning ? [{ type: 'thinking' as const, content: reasoning }] : []
  return { id, role, parts: [...thinking, { type: 'text', content }], metadata }
}

const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000))
