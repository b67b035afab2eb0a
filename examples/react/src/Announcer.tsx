import { useState } from 'react'
import type { Message } from './types'

/**
 * Tells a screen reader that an answer is coming, and reads it once when it is there, not word by word. A failure speaks
 * for itself (`role="alert"`).
 */
export function Announcer({ last, busy }: { last?: Message; busy: boolean }) {
  const [wasBusy, setWasBusy] = useState(false)
  const [text, setText] = useState('')
  if (busy !== wasBusy) {
    setWasBusy(busy)
    setText(busy ? 'The answer is coming.' : spoken(last))
  }
  return (
    <p className="visually-hidden" role="status">
      {text}
    </p>
  )
}

function spoken(last?: Message): string {
  if (last?.role !== 'assistant' || last.error) return ''
  const beginning = last.content.length > 600 ? `${last.content.slice(0, 600)} … It goes on in the page.` : last.content
  return last.status === 'stopped' ? `Stopped. ${beginning}` : beginning
}
