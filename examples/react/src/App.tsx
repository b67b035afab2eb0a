import { useEffect, useRef, useSyncExternalStore } from 'react'
import { Answer, Question, Unanswered } from './Messages'
import { Announcer } from './Announcer'
import { Composer } from './Composer'
import { ConversationList } from './ConversationList'
import { dollars } from './format'
import { Icon } from './Icon'
import { Options } from './Options'
import type { Conversation } from './types'
import { useConversations } from './useConversations'
import { useDraft } from './useDraft'
import { usePinnedScroll } from './usePinnedScroll'
import { onEvent } from './useReading'
import { useRelayChat } from './useRelayChat'

const starters = ['Why is the sky blue?', 'Explain closures with an example', 'Plan a quiet weekend']

const otherTabs = new BroadcastChannel('chat-relay')
const tellOtherTabs = () => otherTabs.postMessage('changed')
const onHashChange = onEvent('hashchange')

/** The open conversation's id is the URL's hash: a reload opens it again, Back goes to the one before. */
export function App() {
  const id = useSyncExternalStore(onHashChange, () => encodeURIComponent(location.hash.slice(1)))
  const list = useConversations(id, tellOtherTabs)
  const onCreate = (id: string) => {
    location.hash = id
    tellOtherTabs()
  }
  const onChange = () => {
    list.refresh()
    tellOtherTabs()
  }
  const chat = useRelayChat({ id, model: list.model, onCreate, onChange })
  const { conversation } = list
  const { messages, busy, gone } = chat
  const trouble = chat.trouble || list.trouble
  const problem = chat.problem || list.problem
  const draft = useDraft(id, messages, chat.dismiss)
  const composer = useRef<HTMLTextAreaElement>(null)
  const { page, atEnd, toEnd } = usePinnedScroll(conversation?.id)
  const last = messages.at(-1)
  // The conversation's has the answers that are gone, too, and the messages' those that have just come.
  const cost = Math.max(conversation?.cost ?? 0, messages.reduce((sum, { usage }) => sum + (usage?.cost ?? 0), 0))
  const title = conversation?.title ?? (gone ? 'Lost conversation' : 'New conversation')

  useEffect(() => {
    document.title = conversation?.title ? `${conversation.title} · Chat relay` : 'Chat relay'
  }, [conversation?.title])

  const refresh = () => {
    chat.refresh()
    list.refresh()
  }
  useEffect(() => onEvent('message', otherTabs)(refresh))

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
  const remove = async (removed: Conversation) => {
    if ((await list.remove(removed)) && location.hash.slice(1) === removed.id) location.hash = ''
  }
  const send = async () => {
    const { text, edited, onSent } = draft
    list.dismiss()
    compose(toEnd)
    onSent(text, await chat.send(text, edited))
  }

  return (
    <div className="app">
      <aside id="conversations" className="sidebar" popover="auto">
        <ConversationList
          conversations={list.conversations}
          onMore={list.listMore}
          current={conversation}
          onNew={startNew}
          onRename={list.rename}
          onRemove={remove}
        />
      </aside>

      <main ref={page}>
        <header className="bar">
          <button className="icon menu" popoverTarget="conversations" aria-label="Conversations">
            <Icon name="menu" />
          </button>
          <h1>{title}</h1>
          {cost > 0 && <small title="What its answers have cost">{dollars(cost)}</small>}
          {!gone && <Options conversation={conversation} model={list.model} onSaved={list.refresh} />}
        </header>

        <div className="notices" role="status">
          {trouble && (
            <p className="notice">
              <span>{trouble}</span> <button onClick={refresh}>Try now</button>
            </p>
          )}
          {gone && (
            <p className="notice">
              <span>
                The relay no longer has this conversation. It was deleted, or the relay was restarted and keeps
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
          {messages.map((message, index) =>
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
                older={chat.older[messages[index - 1]?.id ?? '']}
                model={list.model}
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
          {problem && (
            <p className="failure" role="alert">
              {problem}
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
            models={list.models}
            model={list.model}
            onPickModel={list.pickModel}
          />
        </div>
        <Announcer last={last} busy={busy} />
      </main>
    </div>
  )
}
