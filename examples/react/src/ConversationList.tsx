import { useRef, useState, type FormEvent, type KeyboardEvent } from 'react'
import { flushSync } from 'react-dom'
import { Icon } from './Icon'
import type { Conversation } from './types'

type Props = {
  conversations: Conversation[]
  onMore?: () => void
  current?: Conversation
  onNew: () => void
  onRename: (conversation: Conversation, title: string) => void
  onRemove: (conversation: Conversation) => void
}

export function ConversationList({ conversations, onMore, current, onNew, onRename, onRemove }: Props) {
  const newButton = useRef<HTMLButtonElement>(null)
  const remove = (conversation: Conversation) => {
    newButton.current?.focus() // the row that had it goes away
    onRemove(conversation)
  }
  return (
    <nav aria-label="Conversations">
      <p className="brand">Chat relay</p>
      <button className="new" ref={newButton} onClick={onNew}>
        <Icon name="plus" /> New conversation
      </button>
      <ul>
        {conversations.map((conversation) => (
          <Row
            key={conversation.id}
            conversation={conversation}
            current={conversation === current}
            onRename={onRename}
            onRemove={remove}
          />
        ))}
      </ul>
      {onMore && <button onClick={onMore}>Show more</button>}
      {conversations.length === 0 && <p className="hint">Your conversations will be listed here.</p>}
    </nav>
  )
}

type RowProps = Omit<Props, 'conversations' | 'onMore' | 'current' | 'onNew'> & { conversation: Conversation; current: boolean }

function Row({ conversation, current, onRename, onRemove }: RowProps) {
  const [mode, setMode] = useState<'link' | 'rename' | 'remove'>('link')
  const title = conversation.title ?? 'Untitled'
  const link = useRef<HTMLAnchorElement>(null)
  const leave = () => {
    flushSync(() => setMode('link'))
    link.current?.focus()
  }
  const leaveOnEscape = (event: KeyboardEvent) => {
    if (event.key !== 'Escape') return
    event.preventDefault() // the list stays open on a phone
    leave()
  }
  const rename = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault()
    onRename(conversation, String(new FormData(event.currentTarget).get('title')))
    leave()
  }

  if (mode === 'rename')
    return (
      <li>
        <form onSubmit={rename} onKeyDown={leaveOnEscape} onBlur={() => setMode('link')}>
          <input name="title" aria-label={`New title of ${title}`} defaultValue={title} maxLength={200} autoFocus />
        </form>
      </li>
    )
  if (mode === 'remove')
    return (
      <li className="confirm" onKeyDown={leaveOnEscape}>
        <span>Delete it?</span>
        <button className="danger" autoFocus onClick={() => onRemove(conversation)} aria-label={`Delete ${title} for good`}>
          Delete
        </button>
        <button onClick={leave}>Keep</button>
      </li>
    )
  return (
    <li>
      <a
        ref={link}
        href={`#${conversation.id}`}
        aria-current={current ? 'page' : undefined}
        onClick={() => document.getElementById('conversations')?.hidePopover()}
      >
        {title}
      </a>
      <button className="icon" aria-label={`Rename ${title}`} onClick={() => setMode('rename')}>
        <Icon name="pencil" />
      </button>
      <button className="icon" aria-label={`Delete ${title}`} onClick={() => setMode('remove')}>
        <Icon name="trash" />
      </button>
    </li>
  )
}
