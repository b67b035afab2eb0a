import { useAuiState, useExternalStoreRuntime, useRemoteThreadListRuntime } from '@assistant-ui/react'
import type { AppendMessage, AssistantRuntime, RemoteThreadListAdapter, ThreadMessageLike } from '@assistant-ui/react'
import { createAssistantStream } from 'assistant-stream'
import { EventSourceParserStream } from 'eventsource-parser/stream'
import { useEffect, useRef, useState } from 'react'

type Message = {
  id: string
  role: 'user' | 'assistant'
  content: string
  reasoning?: string | null
  status?: 'complete' | 'streaming' | 'stopped' | 'failed' // none: the relay hasn't got it
  annotations?: { url: string; title?: string | null }[] | null
  error?: { message: string } | null
  last_event_id?: string | null
}
type Options = {
  url: string
  headers?: Record<string, string>
  /** What new conversations are made with: `default_model`, `system_prompt`, … */
  conversation?: object
  /** The open thread, such as the one that the page's address names; none is a new one. */
  threadId?: string
  onThreadIdChange?: (threadId?: string) => void
}
type Call = (method: string, path: string, body?: object, signal?: AbortSignal, last?: string | null) => Promise<Response>

/** assistant-ui's runtime over the relay: threads are its conversations, and a thread that is opened again goes on. */
export function useRelayRuntime({ url, headers, conversation, ...thread }: Options): AssistantRuntime {
  const [call] = useState(() => callsTo(url, headers))
  const [adapter] = useState(() => threadsOf(call))
  return useRemoteThreadListRuntime({
    ...thread,
    adapter,
    runtimeHook: function useThread() {
      return useRelayThread(call, conversation)
    },
  })
}

function useRelayThread(call: Call, conversation?: object): AssistantRuntime {
  const { id, status } = useAuiState(({ threadListItem }) => threadListItem)
  const [wasThere] = useState(status !== 'new')
  const [isLoading, setLoading] = useState(wasThere)
  const [isRunning, setRunning] = useState(false)
  const [messages, setMessages] = useState<Message[]>([])
  const asking = useRef<Promise<Response>>(undefined)
  const leave = useRef(new AbortController())

  /** Shows the answer of the last of these messages as it grows. */
  const show = async (asked: Message[], ask: (last?: string | null) => Promise<Response>, begun?: Message) => {
    const { signal } = leave.current
    let reply = begun ?? { id: newId(), role: 'assistant', content: '' }
    setRunning(true)
    try {
      for await (reply of answer(reply, (last) => (asking.current = ask(last))))
        setMessages([...asked.map((message) => ({ status: 'complete' as const, ...message })), reply])
    } catch (error) {
      if (!signal.aborted) setMessages([...asked, { ...reply, error: error as Error }])
    }
    if (!signal.aborted) setRunning(false)
  }

  const ask = (content: string, parentId: string | null) => {
    const { signal } = leave.current
    const kept = messages.slice(0, messages.findIndex((message) => message.id === parentId) + 1)
    const [before, last] = [kept, messages].map((some) => some.filter((message) => message.status).at(-1)?.id)
    const question: Message = { id: newId(), role: 'user', content }
    const sent = { id: question.id, content, ...(before !== last && { after: before ?? null }) }
    setMessages([...kept, question])
    return show([...kept, question], async (position) => {
      if (!last && !position) await call('POST', '', { ...conversation, id }, signal)
      return call('POST', `/${id}/messages`, sent, signal, position)
    })
  }

  useEffect(() => {
    const { signal } = (leave.current = new AbortController())
    const open = async () => {
      const { messages }: { messages: Message[] } = await (await call('GET', `/${id}/messages`, undefined, signal)).json()
      setMessages(messages)
      setLoading(false)
      const last = messages.at(-1)
      const goOn = (position?: string | null) => call('GET', `/${id}/stream?join=true`, undefined, signal, position)
      if (last?.status === 'streaming') await show(messages.slice(0, -1), goOn, last)
    }
    if (wasThere) open().catch((error: Error) => signal.aborted || setMessages([{ id: newId(), role: 'assistant', content: '', error }]))
    return () => leave.current.abort()
  }, [id, call, wasThere])

  return useExternalStoreRuntime({
    messages,
    isRunning,
    isSendDisabled: isLoading,
    convertMessage: shown,
    onNew: (message) => ask(textOf(message), message.parentId),
    onEdit: (message) => ask(textOf(message), message.parentId),
    onReload: async (parentId) => {
      const index = messages.findIndex((message) => message.id === parentId)
      await ask(messages[index]!.content, messages[index - 1]?.id ?? null)
    },
    onCancel: async () => {
      await asking.current // a question that is still on its way
      await call('DELETE', `/${id}/stream`)
    },
  })
}

/** A reply as it grows, over as many connections as it takes. */
async function* answer(reply: Message, ask: (last?: string | null) => Promise<Response>): AsyncGenerator<Message> {
  for (let isOver = false; !isOver; isOver || (await pause(1))) {
    const { body, status } = await ask(reply.last_event_id)
    if (status === 204) return // deleted meanwhile
    const reader = body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream()).getReader()
    for (let read; (read = await reader.read().catch(() => undefined))?.value; yield reply) {
      const { message_id: id = reply.id, content = '', reasoning = '', ...told } = JSON.parse(read.value.data)
      const text = { content: reply.content + content, reasoning: (reply.reasoning ?? '') + reasoning }
      reply = { ...reply, status: told.error ? 'failed' : 'streaming', ...told, ...text, id }
      reply.last_event_id = read.value.id ?? reply.last_event_id
      isOver = told.done ?? told.error ?? false
    }
  }
}

/** Calls until there is an answer other than to come back later. */
function callsTo(url: string, headers?: Record<string, string>, tries = 20): Call {
  return async (method, path, body, signal, last) => {
    const own = { Accept: 'text/event-stream, application/json', ...(body && { 'Content-Type': 'application/json' }) }
    const init = { method, headers: { ...own, ...(last && { 'Last-Event-ID': last }), ...headers }, body: body && JSON.stringify(body) }
    const sent = fetch(`${url}/conversations${path}`, { ...init, signal })
    const response = await sent.catch(() => signal?.throwIfAborted())
    if (response?.ok) return response
    const problem = response?.headers.get('Content-Type')?.startsWith('application/problem+json') && (await response.json())
    const seconds = problem ? Number(response?.headers.get('Retry-After')) : 1
    if (!seconds || !tries) throw new Error(problem ? problem.detail : `Can’t reach the relay at ${url}.`)
    await pause(seconds)
    return callsTo(url, headers, last ? tries : tries - 1)(method, path, body, signal, last)
  }
}

/** The relay's conversations. It makes their titles itself, and has no archive. */
function threadsOf(call: Call): RemoteThreadListAdapter {
  type Conversation = { id: string; title: string | null; updated_at: string }
  const thread = ({ id, title, updated_at }: Conversation) =>
    ({ remoteId: id, status: 'regular', title: title ?? undefined, lastMessageAt: new Date(updated_at) }) as const
  return {
    async list({ after = '' } = {}) {
      const { conversations, next_cursor } = await (await call('GET', `?cursor=${after}`)).json()
      return { threads: conversations.map(thread), nextCursor: next_cursor ?? undefined }
    },
    initialize: async (threadId) => ({ remoteId: threadId }), // the first question makes it
    fetch: async (threadId) => thread(await (await call('GET', `/${threadId}`)).json()),
    rename: async (threadId, title) => void (await call('PATCH', `/${threadId}`, { title })),
    delete: async (threadId) => void (await call('DELETE', `/${threadId}`)),
    archive: async () => {
      throw new Error('The relay has no archive.')
    },
    async generateTitle(_, [first]) {
      const line = first ? textOf(first).trim().split('\n', 1)[0]! : ''
      return createAssistantStream((controller) => controller.appendText([...line].slice(0, 80).join('')))
    },
  }
}

function shown({ id, role, content, reasoning, annotations, ...custom }: Message): ThreadMessageLike {
  const sources = new Map(annotations?.map(({ url, title }) => [url, title ?? undefined])) // each page once
  const parts = [
    ...(reasoning ? [{ type: 'reasoning' as const, text: reasoning }] : []),
    ...(content ? [{ type: 'text' as const, text: content }] : []),
    ...[...sources].map(([url, title]) => ({ type: 'source' as const, sourceType: 'url' as const, id: url, url, title })),
  ]
  return { id, role, content: parts, metadata: { custom }, ...(role === 'assistant' && { status: ended(custom) }) }
}

function ended({ status, error }: Partial<Message>): ThreadMessageLike['status'] {
  if (error) return { type: 'incomplete', reason: 'error', error: error.message }
  if (status === 'streaming') return { type: 'running' }
  return status === 'stopped' ? { type: 'incomplete', reason: 'cancelled' } : { type: 'complete', reason: 'stop' }
}

const textOf = ({ content }: Pick<AppendMessage, 'content'>) => content.map((part) => (part.type === 'text' ? part.text : '')).join('')

const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000))

/** `crypto.randomUUID` is there on secure origins only, this on all. */
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(36)).join('')
