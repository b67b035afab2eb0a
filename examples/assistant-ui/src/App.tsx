import {
  ActionBarPrimitive,
  AssistantRuntimeProvider,
  ComposerPrimitive,
  MessagePrimitive,
  ThreadListItemPrimitive,
  ThreadListPrimitive,
  ThreadPrimitive,
  useAui,
  useAuiState,
  type AssistantRuntime,
} from '@assistant-ui/react'
import { useEffect, useState, useSyncExternalStore } from 'react'

export const url: string = import.meta.env.VITE_RELAY_URL ?? 'http://localhost:8001'
export const model = new URLSearchParams(location.search).get('model') // such as ?model=demo/reasoning

type OpenThread = { threadId?: string; onThreadIdChange: (id?: string) => void }
type Props = {
  useRuntime: (thread: OpenThread) => AssistantRuntime
  /** Why the last question has no answer, where the runtime says so apart from the messages. */
  useError?: () => Error | undefined
}

/** What the relay tells of an answer beside its text. */
type Told = {
  status?: string
  model?: string | null
  served_model?: string | null
  provider?: string | null
  usage?: { completion_tokens?: number; cost?: number | null } | null
  error?: { message: string; retry_after?: number | null } | null
}

/** The open thread's id is the URL's hash, so a reload opens it again. */
export function App({ useRuntime, useError = () => undefined }: Props) {
  const threadId = useSyncExternalStore(onHashChange, () => location.hash.slice(1)) || undefined
  const onThreadIdChange = (id = '') => {
    if (id !== location.hash.slice(1)) location.hash = id
  }
  const runtime = useRuntime({ threadId, onThreadIdChange })
  return (
    <AssistantRuntimeProvider runtime={runtime}>
      <div className="app">
        <ThreadListPrimitive.Root asChild>
          <nav aria-label="Conversations">
            <ThreadListPrimitive.New>New chat</ThreadListPrimitive.New>
            <ThreadListPrimitive.Items>{() => <Thread />}</ThreadListPrimitive.Items>
          </nav>
        </ThreadListPrimitive.Root>
        <Chat useError={useError} />
      </div>
    </AssistantRuntimeProvider>
  )
}

function Thread() {
  const aui = useAui()
  const title = useAuiState(({ threadListItem }) => threadListItem.title)
  const [isRenamed, setRenamed] = useState(false)
  const rename = async (form: FormData) => {
    setRenamed(false)
    await aui.threadListItem().rename(String(form.get('title')))
  }
  if (isRenamed)
    return (
      <form action={rename} className="thread">
        <input name="title" aria-label="Title" defaultValue={title} autoFocus required />
        <button>Save</button>
      </form>
    )
  return (
    <ThreadListItemPrimitive.Root className="thread">
      <ThreadListItemPrimitive.Trigger>
        <ThreadListItemPrimitive.Title fallback="New chat" />
      </ThreadListItemPrimitive.Trigger>
      <button aria-label="Rename" onClick={() => setRenamed(true)}>
        ✎
      </button>
      <ThreadListItemPrimitive.Delete aria-label="Delete">×</ThreadListItemPrimitive.Delete>
    </ThreadListItemPrimitive.Root>
  )
}

function Chat({ useError }: Required<Pick<Props, 'useError'>>) {
  return (
    <ThreadPrimitive.Root asChild>
      <main>
        <h1>assistant-ui over chat-relay</h1>
        <ThreadPrimitive.Messages components={{ UserMessage: Question, UserEditComposer: Edit, AssistantMessage: Answer }} />
        <Failure error={useError()} />
        <ComposerPrimitive.Root>
          <ComposerPrimitive.Input aria-label="Message" />
          <ThreadPrimitive.If running={false}>
            <ComposerPrimitive.Send>Send</ComposerPrimitive.Send>
          </ThreadPrimitive.If>
          <ThreadPrimitive.If running>
            <ComposerPrimitive.Cancel>Stop</ComposerPrimitive.Cancel>
          </ThreadPrimitive.If>
        </ComposerPrimitive.Root>
      </main>
    </ThreadPrimitive.Root>
  )
}

function Question() {
  return (
    <MessagePrimitive.Root asChild>
      <article className="question" aria-label="Your message">
        <MessagePrimitive.Parts components={{ Text }} />
        <ActionBarPrimitive.Root hideWhenRunning>
          <ActionBarPrimitive.Edit>Edit</ActionBarPrimitive.Edit>
        </ActionBarPrimitive.Root>
      </article>
    </MessagePrimitive.Root>
  )
}

function Edit() {
  return (
    <ComposerPrimitive.Root className="question">
      <ComposerPrimitive.Input aria-label="Edited message" />
      <ComposerPrimitive.Send>Send again</ComposerPrimitive.Send>
      <ComposerPrimitive.Cancel>Cancel</ComposerPrimitive.Cancel>
    </ComposerPrimitive.Root>
  )
}

function Answer() {
  const { status, metadata } = useAuiState(({ message }) => message)
  const { model, served_model, provider, usage, ...told }: Told = metadata.custom
  const isWriting = status?.type === 'running'
  const facts = [told.status === 'stopped' && 'stopped', served_model ?? model, provider]
  if (usage?.completion_tokens) facts.push(`${usage.completion_tokens} tokens`)
  if (usage?.cost != null) facts.push(`$${usage.cost.toPrecision(2)}`)
  return (
    <MessagePrimitive.Root asChild>
      <article className="answer" aria-label="Answer" aria-busy={isWriting} data-status={isWriting ? 'streaming' : told.status}>
        <MessagePrimitive.Parts components={{ Text, Reasoning, Source }} />
        <footer>{!isWriting && facts.filter(Boolean).join(' · ')}</footer>
        {!told.error && (
          <ActionBarPrimitive.Root hideWhenRunning autohide="not-last">
            <ActionBarPrimitive.Reload>Regenerate</ActionBarPrimitive.Reload>
          </ActionBarPrimitive.Root>
        )}
      </article>
    </MessagePrimitive.Root>
  )
}

const Text = ({ text }: { text: string }) => <p>{text}</p>

const Reasoning = ({ text }: { text: string }) => (
  <details>
    <summary>Reasoning</summary>
    {text}
  </details>
)

const Source = ({ url, title }: { url?: string; title?: string }) => (
  <a className="source" href={url} target="_blank" rel="noopener noreferrer nofollow">
    {title ?? url}
  </a>
)

/** What went wrong with the last question or its answer, if something did, and the way to have another answer. */
function Failure({ error }: { error?: Error }) {
  const last = useAuiState(({ thread }) => thread.messages.at(-1))
  const question = useAuiState(({ thread }) => thread.messages.filter(({ role }) => role === 'user').at(-1))
  const isRunning = useAuiState(({ thread }) => thread.isRunning)
  const failure = (last?.metadata.custom as Told | undefined)?.error
  const problem = failure?.message ?? error?.message
  if (!last || !question || isRunning || !problem) return null
  return <Again key={last.id} after={question.id} problem={problem} seconds={failure?.retry_after ?? 0} />
}

function Again({ after, problem, seconds }: { after: string; problem: string; seconds: number }) {
  const aui = useAui()
  const left = useCountdown(seconds)
  return (
    <div>
      <p role="alert">{problem}</p>
      <button disabled={left > 0} onClick={() => aui.thread().startRun({ parentId: after })}>
        {left > 0 ? `Try again in ${left} s` : 'Try again'}
      </button>
    </div>
  )
}

function useCountdown(seconds: number): number {
  const [start] = useState(Date.now)
  const [now, setNow] = useState(start)
  const left = Math.ceil(seconds - (now - start) / 1000)
  useEffect(() => {
    if (left <= 0) return
    const timer = setInterval(() => setNow(Date.now()), 250)
    return () => clearInterval(timer)
  }, [left])
  return left
}

function onHashChange(listener: () => void) {
  addEventListener('hashchange', listener)
  return () => removeEventListener('hashchange', listener)
}
