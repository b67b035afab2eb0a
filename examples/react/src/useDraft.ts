import { useState } from 'react'
import type { Message } from './types'

/** The text in the composer: a draft or, in its place for a while, an earlier message that is being edited. */
export function useDraft(id: string, messages: Message[], onFound: () => void) {
  const [draft, setDraft] = useState('')
  const [edit, setEdit] = useState<{ id: string; text: string }>()
  const [lost, setLost] = useState<{ text: string; id: string; before: Message[] }>() // or has it arrived?

  const clear = (sent: string) => {
    setDraft((draft) => (draft === sent ? '' : draft)) // typing may have gone on
    setEdit((edit) => (edit?.text === sent ? undefined : edit))
  }
  const isFound = ({ id, role, content }: Message) =>
    role === 'user' && content === lost?.text && !lost.before.some((message) => message.id === id)
  if (lost?.id === id && messages.some(isFound)) {
    setLost(undefined)
    clear(lost.text)
    onFound() // it had arrived, only the response had not
  }

  return {
    text: edit?.text ?? draft,
    edited: messages.find(({ id }) => id === edit?.id),
    write: (text: string) => (edit ? setEdit({ ...edit, text }) : setDraft(text)),
    edit: ({ id, content }: Message) => setEdit({ id, text: content }),
    cancel: () => setEdit(undefined),
    /** What has been sent leaves the box, at once or when it is found among the messages after all. */
    onSent: (text: string, arrived: boolean) => {
      if (arrived) clear(text)
      setLost(arrived ? undefined : { text, id, before: messages })
    },
  }
}
