import { useEffect, useRef } from 'react'
import { Answer, Question, Unanswered } from './Messages'
import { Announcer } from './Announcer'
import { Composer } from './Composer'
import { ConversationList } from './ConversationList'
import { dollars } from './format'
import { Icon } from './Icon'
import { Options } from './Options'
import { useChat } from './useChat'
import { useDraft } from './useDraft'
import { usePinnedScroll } from './usePinnedScroll'

const starters = ['Why is the sky blue?', 'Explain closures with an example', 'Plan a quiet weekend']

export function App() {
  const chat = useChat()
  const { conversation, messages, busy, gone } = chat
  const draft = useDraft(messages, chat.dismiss)
  const composer = useRef<HTMLTextAreaElement>(null)
  const { page, atEnd, toEnd } = usePinnedScroll(conversation?.id)
  const last = messages.at(-1)
  const title = conversation?.title ?? (gone ? 'Lost conversation' : 'New conversation')

  useEffect(() => {
    document.title = conversation?.title ? `${conversation.title} · Chat relay` : 'Chat relay'
  }, [conversation?.title])

  /** Does it, and goes on in the composer: what was clicked may be gone. */
  const compose = (first: () => unknown) => {
    first()
    composer.current?.focus()
  }
  /** The same, but no phone's keyboard comes up for it. */
  const goOn = (first: () => unknown) => (matchMedia('(hover: hover)').matches ? compose(first) : first())
  const startNew = () => {
    location.hash = ''
    document.getElementById('conversations')?.hidePopover()
    composer.current?.focus()
  }
  const send = async () => {
    const { text, edited, onSent } = draft
    compose(toEnd)
    onSent(text, await chat.send(text, edited))
  }

  return (
    <div className="app">
      <aside id="conversations" className="sidebar" popover="auto">
        <ConversationList
          conversations={chat.conversations}
          onMore={chat.listMore}
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
          {conversation?.cost != null && <small title="What its answers have cost">{dollars(conversation.cost)}</small>}
          {!gone && <Options conversation={conversation} model={chat.model} onSaved={chat.refresh} />}
        </header>

        <div className="notices" role="status">
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
                <button key={starter} disabled={draft.text !== ''} onClick={() => compose(() => draft.write(starter))}>
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
                edited={message === draft.edited}
                onEdit={gone ? undefined : () => compose(() => draft.edit(message))}
              />
            ) : (
              <Answer
                key={message.id}
                message={message}
                model={chat.model}
                writing={busy && message === last}
                onRegenerate={message === last && !busy && !gone ? () => goOn(() => chat.regenerate(message)) : undefined}
              />
            ),
          )}
          {last?.role === 'user' && !gone && <Unanswered onAsk={() => goOn(chat.regenerate)} />}
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
            text={draft.text}
            onText={draft.write}
            editing={draft.edited !== undefined}
            onCancelEditing={() => compose(draft.cancel)}
            busy={busy}
            onSend={send}
            onStop={() => goOn(chat.stop)}
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
