import { useChat, type UIMessage } from '@tanstack/ai-react'
import { useEffect, useState, useSyncExternalStore, type FormEvent } from 'react'
import { relayConnection } from './relay-connection'

const relayUrl: string = import.meta.env.VITE_RELAY_URL ?? 'http://localhost:8001'
const model = new URLSearchParams(location.search).get('model') // such as ?model=demo/reasoning
const connection = relayConnection(relayUrl, { conversation: model ? { default_model: model } : {} })

/** The open conversation's id is the URL's hash, so a reload opens it again. */
export function App() {
  const id = useSyncExternalStore(onHashChange, () => location.hash.slice(1))
  useEffect(() => {
    if (!id) location.replace(`#${newId()}`)
  }, [id])
  return (
    <main>
      <header>
        <h1>TanStack AI over chat-relay</h1>
        <a href={`#${newId()}`}>New chat</a>
      </header>
      {id && <Chat key={id} id={id} />}
    </main>
  )
}

function Chat({ id }: { id: string }) {
  const [persistence] = useState(() => !isNew.has(id)) // what is new needs no loading
  const chat = useChat({ threadId: id, connection, persistence })
  const { isLoading: isBusy, error } = chat
  const messages = chat.messages.filter(({ parts, metadata }) => parts.length > 0 || metadata)
  const [text, setText] = useState('')
  const [edited, setEdited] = useState<string>()
  const last = messages.at(-1)

  const send = (event: FormEvent) => {
    event.preventDefault()
    if (!text.trim() || isBusy) return
    const index = messages.findIndex(({ id }) => id === edited)
    if (index >= 0) chat.setMessages(messages.slice(0, index))
    isNew.delete(id)
    void chat.sendMessage(text)
    setText('')
    setEdited(undefined)
  }
  const edit = (message: UIMessage) => {
    setText(textOf(message))
    setEdited(message.id)
  }
  return (
    <>
      <section aria-label="Messages">
        {messages.map((message) =>
          message.role === 'user' ? (
            <article key={message.id} className="question" aria-label="Your message">
              <p>{textOf(message)}</p>
              {!isBusy && <button onClick={() => edit(message)}>Edit</button>}
            </article>
          ) : (
            <Answer key={message.id} message={message} isWriting={isBusy && message === last} />
          ),
        )}
        {isBusy && last?.role === 'user' && <p className="waiting">Waiting for the answer …</p>}
        {!isBusy && last && <Again key={last.id} last={last} error={error} onAgain={() => chat.reload()} />}
      </section>
      <form onSubmit={send}>
        <textarea aria-label="Message" value={text} onChange={(event) => setText(event.target.value)} rows={2} />
        {isBusy ? (
          <button type="button" onClick={() => connection.stop(id).catch(chat.stop)}>
            Stop
          </button>
        ) : (
          <button>Send</button>
        )}
      </form>
    </>
  )
}

function Answer({ message: { parts, metadata = {} }, isWriting }: { message: UIMessage; isWriting: boolean }) {
  const { status, model, served_model, provider, usage, annotations } = metadata
  const facts = [
    status === 'stopped' && 'stopped',
    served_model ?? model,
    provider,
    usage?.completion_tokens && `${usage.completion_tokens} tokens`,
    usage?.cost != null && `$${usage.cost.toPrecision(2)}`,
  ]
  const sources = new Map<string, string | null>(annotations?.map(({ url, title }: Source) => [url, title])) // each page once
  return (
    <article className="answer" aria-label="Answer" aria-busy={isWriting} data-status={isWriting ? 'streaming' : status}>
      {parts.map((part, index) => {
        if (part.type === 'text') return <p key={index}>{part.content}</p>
        if (part.type !== 'thinking') return null
        return (
          <details key={index} open={isWriting}>
            <summary>Reasoning</summary>
            {part.content}
          </details>
        )
      })}
      {[...sources].map(([url, title]) => (
        <a key={url} className="source" href={url} target="_blank" rel="noopener noreferrer nofollow">
          {title ?? url}
        </a>
      ))}
      {!isWriting && <footer>{facts.filter(Boolean).join(' · ')}</footer>}
    </article>
  )
}

type Source = { url: string; title: string | null }

/** What went wrong with the last question or its answer, if something did, and the way to have another answer. */
function Again({ last, error, onAgain }: { last: UIMessage; error?: Error; onAgain: () => void }) {
  const failure = last.metadata?.error
  const left = useCountdown(failure?.retry_after ?? 0)
  const problem = failure?.message ?? error?.message
  return (
    <div className="again">
      {problem && <p role="alert">{problem}</p>}
      <button onClick={onAgain} disabled={left > 0}>
        {left > 0 ? `Try again in ${left} s` : problem || last.role === 'user' ? 'Try again' : 'Regenerate'}
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

const isNew = new Set<string>() // ids that no conversation has yet

function newId(): string {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(36)).join('')
  isNew.add(id)
  return id
}

function onHashChange(listener: () => void) {
  addEventListener('hashchange', listener)
  return () => removeEventListener('hashchange', listener)
}

const textOf = ({ parts }: UIMessage) => parts.map((part) => (part.type === 'text' ? part.content : '')).join('')
