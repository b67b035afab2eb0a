import { useState, type FormEvent, type KeyboardEvent, type Ref } from 'react'
import { Icon } from './Icon'
import { ModelPicker } from './ModelPicker'
import type { Model } from './types'

type Props = {
  ref: Ref<HTMLTextAreaElement>
  text: string
  onText: (text: string) => void
  editing: boolean
  onCancelEditing: () => void
  busy: boolean
  onSend: () => Promise<unknown>
  onStop: () => void
  models: Model[]
  model?: string
  onPickModel: (model: string) => void
}

export function Composer({ ref, text, onText, editing, onCancelEditing, busy, onSend, onStop, ...picker }: Props) {
  const [sending, setSending] = useState(false)
  const ready = text.trim() !== '' && !sending && (!busy || editing)

  const send = async (event?: FormEvent) => {
    event?.preventDefault()
    if (!ready) return
    setSending(true)
    await onSend().finally(() => setSending(false))
  }
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === 'Escape' && editing) onCancelEditing()
    if (event.key !== 'Enter' || event.shiftKey || event.nativeEvent.isComposing) return
    event.preventDefault()
    void send()
  }

  return (
    <form className="composer" aria-label="Ask" onSubmit={send}>
      {editing && (
        <p className="editing">
          Editing: what follows will be replaced.{' '}
          <button type="button" onClick={onCancelEditing}>
            Cancel
          </button>
        </p>
      )}
      <div className="grow" data-text={text}>
        <textarea
          ref={ref}
          rows={1}
          aria-label="Message"
          placeholder="Ask something"
          title="Enter sends, Shift+Enter starts a new line"
          enterKeyHint="send"
          autoFocus
          value={text}
          onChange={(event) => onText(event.target.value)}
          onKeyDown={onKeyDown}
        />
      </div>
      <div className="row">
        <ModelPicker {...picker} />
        {sending && (
          <span className="sending" role="status">
            Sending …
          </span>
        )}
        {(busy || sending) && (
          <button type="button" className="stop" onClick={onStop}>
            <Icon name="stop" /> Stop
          </button>
        )}
        <button className="icon send" aria-label="Send" disabled={!ready}>
          <Icon name="up" />
        </button>
      </div>
    </form>
  )
}
