import { useChat } from '@ai-sdk/react'
import { useEffect, useState, useSyncExternalStore, type FormEvent } from 'react'
import { relayTransport, type RelayError, type RelayMessage } from './relay-transport'

const relayUrl: string = import.meta.env.VITE_RELAY_URL ?? 'http://localhost:8001'
const model = new URLSearchParams(location.search).get('model') // such as ?model=demo/reasoning

let onWait = (_?: RelayError) => {}
const transport = relayTransport(relayUrl, {
  conversation: model ? { default_model: model } : {},
  onWait: (why) => onWait(why),
})

/** The open conversation's id is the URL's hash, so a reload opens it again. */
export function App() {
  const id = useSyncExternalStore(onHashChange, () => location.hash.slice(1))
  const [opened, setOpened] = useState<{ id: string; messages: RelayMessage[]; problem?: string }>()
  useEffect(() => {
    if (!id) location.replace(`#${newId()}`)
    else if (isNew.delete(id)) setOpened({ id, messages: [] })
    else
      transport.load(id).then(
        (messages) => setOpened({ id, messages }),
        ({ message }: RelayError) => setOpened({ id, messages: [], problem: message }),
      )
  }, [id])
  return (
    <main>
      <header>
        <h1>useChat over chat-relay</h1>
        <a href={`#${newId()}`}>New chat</a>
      </header>
      {opened?.problem && <p role="alert">{opened.problem}</p>}
      {opened?.id === id && !opened.problem && <Chat key={id} {...opened} />}
    </main>
  )
}

function Chat({ id, messages: initial }: { id: string; messages: RelayMessage[] }) {
  const chat = useChat<RelayMessage>({ id, messages: initial, transport, resume: initial.length > 0 })
  const { messages, status, error } = chat
  const [text, setText] = useState('')
  const [edited, setEdited] = useState<string>()
  const [waiting, setWaiting] = useState<RelayError>()
  const isBusy = status === 'submitted' || status === 'streaming'
  const last = messages.at(-1)
  useEffect(() => {
    onWait = setWaiting
  }, [])

  const send = (event: FormEvent) => {
    event.preventDefault()
    if (!text.trim() || isBusy) return
    void chat.sendMessage({ text, messageId: edited })
    setText('')
    setEdited(undefined)
  }
  const edit = (message: RelayMessage) => {
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
        {!isBusy && last && <Again key={last.id} last={last} error={error} onAgain={() => chat.regenerate()} />}
      </section>
      <p role="status">{waiting && `${waiting.message} Trying again …`}</p>
      <form onSubmit={send}>
        <textarea aria-label="Message" value={text} onChange={(event) => setText(event.target.value)} rows={2} />
        {isBusy ? (
          <button type="button" onClick={() => transport.stop(id).catch(chat.stop)}>
            Stop
          </button>
        ) : (
          <button>Send</button>
        )}
      </form>
    </>
  )
}

function Answer({ message: { parts, metadata = {} }, isWriting }: { message: RelayMessage; isWriting: boolean }) {
  const { status, model, served_model, provider, usage } = metadata
  const facts = [
    status === 'stopped' && 'stopped',
    served_model ?? model,
    provider,
    usage?.completion_tokens && `${usage.completion_tokens} tokens`,
    usage?.cost != null && `$${usage.cost.toPrecision(2)}`,
  ]
  return (
    <article className="answer" aria-label="Answer" aria-busy={isWriting} data-status={isWriting ? 'streaming' : status}>
      {parts.map((part, index) => {
        if (part.type === 'text') return <p key={index}>{part.text}</p>
        if (part.type === 'reasoning')
          return (
            <details key={index} open={isWriting}>
              <summary>Reasoning</summary>
              {part.text}
            </details>
          )
        if (part.type !== 'source-url') return null
        return (
          <a key={index} className="source" href={part.url} target="_blank" rel="noopener noreferrer nofollow">
            {part.title ?? part.url}
          </a>
        )
      })}
      {!isWriting && <footer>{facts.filter(Boolean).join(' · ')}</footer>}
    </article>
  )
}

/** What went wrong with the last question or its answer, if something did, and the way to have another answer. */
function Again({ last, error, onAgain }: { last: RelayMessage; error?: Error; onAgain: () => void }) {
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

const textOf = ({ parts }: RelayMessage) => parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
