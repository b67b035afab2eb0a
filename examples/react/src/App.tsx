import { useEffect, useRef, useState } from 'react'
import { Answer, Question, Typing } from './Messages'
import { Announcer } from './Announcer'
import { Composer } from './Composer'
import { ConversationList } from './ConversationList'
import { Icon } from './Icon'
import { useChat } from './useChat'
import { usePinnedScroll } from './usePinnedScroll'

const starters = ['Why is the sky blue?', 'Explain closures with an example', 'Plan a quiet weekend']

export function App() {
  const chat = useChat()
  const { conversation, messages, busy, gone } = chat
  const [draft, setDraft] = useState('')
  const [editedId, setEditedId] = useState('')
  const edited = messages.find(({ id }) => id === editedId)
  const composer = useRef<HTMLTextAreaElement>(null)
  const { page, atEnd, toEnd } = usePinnedScroll(conversation?.id)
  const last = messages.at(-1)
  const title = conversation?.title ?? (gone ? 'Lost conversation' : 'New conversation')

  useEffect(() => {
    document.title = conversation?.title ? `${conversation.title} · Chat relay` : 'Chat relay'
  }, [conversation?.title])

  const compose = (text: string, inPlaceOf = '') => {
    setDraft(text)
    setEditedId(inPlaceOf)
    composer.current?.focus()
  }
  const startNew = () => {
    location.hash = ''
    document.getElementById('conversations')?.hidePopover()
    composer.current?.focus()
  }
  const send = async () => {
    toEnd()
    if (await chat.send(draft, edited)) compose('')
  }

  return (
    <div className="app">
      <aside id="conversations" className="sidebar" popover="auto">
        <ConversationList
          conversations={chat.conversations}
          current={conversation}
          onNew={startNew}
          onRename={chat.rename}
          onRemove={chat.remove}
        />
      </aside>

      <main ref={page}>
        <header className="bar">
          <button className="icon menu" popoverTarget="conversations" aria-label="Conversations">
            <Icon name="menu" />
          </button>
          <h1>{title}</h1>
        </header>

        <div role="status">
          {chat.trouble && (
            <p className="notice">
              <span>{chat.trouble}</span> <button onClick={chat.refresh}>Try now</button>
            </p>
          )}
          {gone && (
            <p className="notice">
              <span>
                The relay no longer has this conversation. It was deleted, or the relay was restarted: it keeps
                conversations in memory only.
              </span>{' '}
              <button onClick={startNew}>Start a new one</button>
            </p>
          )}
        </div>

        <section className="thread" aria-label="Messages">
          {messages.length === 0 && !chat.loading && !gone && (
            <div className="welcome">
              <h2>What would you like to know?</h2>
              <p>Enter sends, Shift + Enter starts a new line.</p>
              {starters.map((starter) => (
                <button key={starter} onClick={() => compose(starter)}>
                  {starter}
                </button>
              ))}
            </div>
          )}
          {messages.map((message) =>
            message.role === 'user' ? (
              <Question
                key={message.id}
                message={message}
                edited={message === edited}
                onEdit={gone ? undefined : () => compose(message.content, message.id)}
              />
            ) : (
              <Answer
                key={message.id}
                message={message}
                model={chat.model}
                writing={busy && message === last}
                onRegenerate={message === last && !busy && !gone ? () => chat.regenerate(message) : undefined}
              />
            ),
          )}
          {busy && last?.role === 'user' && <Typing />}
        </section>

        <div className="dock">
          {!atEnd && (
            <button className="icon jump" onClick={toEnd} aria-label="To the latest message">
              <Icon name="down" />
            </button>
          )}
          {chat.problem && (
            <p className="failure" role="alert">
              {chat.problem}
            </p>
          )}
          <Composer
            ref={composer}
            text={draft}
            onText={setDraft}
            editing={edited !== undefined}
            onCancelEditing={() => compose('')}
            busy={busy}
            onSend={send}
            onStop={chat.stop}
            models={chat.models}
            model={chat.model}
            onPickModel={chat.pickModel}
          />
        </div>
        <Announcer last={last} busy={busy} />
      </main>
    </div>
  )
}
