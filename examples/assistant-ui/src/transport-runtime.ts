import { useChat } from '@ai-sdk/react'
import { useAuiState, useRemoteThreadListRuntime, type AssistantRuntime, type RemoteThreadListAdapter } from '@assistant-ui/react'
import { useAISDKRuntime } from '@assistant-ui/ai-sdk'
import { createAssistantStream } from 'assistant-stream'
import { useEffect, useState } from 'react'
import type { RelayMessage, RelayTransport } from './relay-transport'

type Options = {
  transport: RelayTransport
  /** The open thread, such as the one that the page's address names; none is a new one. */
  threadId?: string
  onThreadIdChange?: (threadId?: string) => void
}

/** assistant-ui's runtime over the relay: threads are its conversations, and a thread that is opened again goes on. */
export function useTransportRuntime({ transport, ...thread }: Options): AssistantRuntime {
  const [adapter] = useState(() => threadsOf(transport))
  return useRemoteThreadListRuntime({
    ...thread,
    adapter,
    runtimeHook: function useThread() {
      return useRelayThread(transport)
    },
  })
}

function useRelayThread(transport: RelayTransport): AssistantRuntime {
  const { id, status } = useAuiState(({ threadListItem }) => threadListItem)
  const chat = useChat<RelayMessage>({ id, transport })
  const { setMessages, resumeStream } = chat
  const [isLoading, setLoading] = useState(status !== 'new') // only what is there before it is opened
  useEffect(() => {
    if (!isLoading) return
    let isLeft = false
    void transport.load(id).then((messages) => {
      if (isLeft) return
      setMessages(messages)
      setLoading(false)
      void resumeStream()
    })
    return () => {
      isLeft = true
    }
  }, [id, isLoading, transport, setMessages, resumeStream])
  const stop = () => transport.stop(id).catch(chat.stop)
  return useAISDKRuntime({ ...chat, stop }, { isSendDisabled: isLoading })
}

/** The relay's conversations. It makes their titles itself, and has no archive. */
function threadsOf({ call }: RelayTransport): RemoteThreadListAdapter {
  type Conversation = { id: string; title: string | null; updated_at: string }
  const thread = ({ id, title, updated_at }: Conversation) =>
    ({ remoteId: id, status: 'regular', title: title ?? undefined, lastMessageAt: new Date(updated_at) }) as const
  return {
    async list({ after = '' } = {}) {
      const { conversations, next_cursor } = await (await call('GET', `/conversations?cursor=${after}`)).json()
      return { threads: conversations.map(thread), nextCursor: next_cursor ?? undefined }
    },
    initialize: async (threadId) => ({ remoteId: threadId }), // the first question makes it
    fetch: async (threadId) => thread(await (await call('GET', `/conversations/${threadId}`)).json()),
    async rename(threadId, title) {
      await call('PATCH', `/conversations/${threadId}`, { title })
    },
    async delete(threadId) {
      await call('DELETE', `/conversations/${threadId}`)
    },
    archive: async () => {
      throw new Error('The relay has no archive.')
    },
    async generateTitle(_, [first]) {
      const text = first?.content.map((part) => (part.type === 'text' ? part.text : '')).join('') ?? ''
      const line = text.trim().split('\n', 1)[0]!
      return createAssistantStream((controller) => controller.appendText([...line].slice(0, 80).join('')))
    },
  }
}
