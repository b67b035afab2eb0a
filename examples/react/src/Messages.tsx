import { useEffect, useState } from 'react'
import { CopyButton } from './CopyButton'
import { Icon } from './Icon'
import { dollars } from './format'
import { Markdown } from './Markdown'
import { Sources } from './Sources'
import type { Message } from './relay'

type QuestionProps = { message: Message; edited: boolean; onEdit?: () => void }

export function Question({ message, edited, onEdit }: QuestionProps) {
  return (
    <article className="question" aria-label="Your message" aria-current={edited || undefined}>
      <p dir="auto">{message.content}</p>
      <footer>
        {onEdit && (
          <button className="quiet" onClick={onEdit}>
            <Icon name="pencil" /> Edit
          </button>
        )}
      </footer>
    </article>
  )
}

type AnswerProps = { message: Message; model?: string; writing: boolean; onRegenerate?: () => void }

/** `model` is the one that would answer next; `onRegenerate` is there if this answer may be replaced. */
export function Answer({ message, model, writing, onRegenerate }: AnswerProps) {
  const { content, reasoning, error, annotations } = message
  return (
    <article
      className={writing ? 'answer writing' : 'answer'}
      aria-label={`Answer of ${message.model}`}
      aria-busy={writing}
      data-status={message.status}
    >
      {reasoning && (
        <details>
          <summary>{writing && !content ? 'Thinking …' : 'Reasoning'}</summary>
          <Markdown text={reasoning} />
        </details>
      )}
      {content && <Markdown text={content} />}
      {annotations && <Sources annotations={annotations} />}
      {writing && !content && <Typing />}
      {error && <Failure error={error} other={model !== message.model ? model : undefined} onRetry={onRegenerate} />}
      {!writing && (
        <footer>
          <span>{facts(message).join(' · ')}</span>
          {content && <CopyButton label="Copy the answer" text={() => content} />}
          {onRegenerate && !error && (
            <button className="quiet" onClick={onRegenerate}>
              <Icon name="again" /> Regenerate
            </button>
          )}
        </footer>
      )}
    </article>
  )
}

/** Under a last question that is not being answered: another client has left it so, or its answer was deleted. */
export function Unanswered({ onAsk }: { onAsk: () => void }) {
  return (
    <p className="unanswered">
      <span>This question has no answer yet.</span> <button onClick={onAsk}>Get the answer</button>
    </p>
  )
}

function Typing() {
  return (
    <p className="typing">
      <span className="visually-hidden">Waiting for the answer</span>
      <i />
      <i />
      <i />
    </p>
  )
}

type FailureProps = { error: NonNullable<Message['error']>; other?: string; onRetry?: () => void }

/** What went wrong and what to do: wait, try again, or take another model, as `other` says the reader already has. */
function Failure({ error, other, onRetry }: FailureProps) {
  const left = useCountdown(other ? 0 : (error.retry_after ?? 0))
  return (
    <div className="failure">
      <p role={onRetry && 'alert'}>
        {error.message}
        {onRetry && !error.retryable && !other && ' Choose another model, or edit your message.'}
      </p>
      {onRetry && (error.retryable || other) && (
        <button onClick={onRetry} disabled={left > 0}>
          {left > 0 ? `Try again in ${left} s` : other ? `Try again with ${other}` : 'Try again'}
        </button>
      )}
    </div>
  )
}

/** Seconds left of so many; counts by the clock, because hidden tabs get few ticks. */
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

/** By status, then by finish_reason. */
const endings: Record<string, string> = {
  stopped: 'stopped',
  streaming: 'interrupted',
  length: 'cut off: the model’s limit of tokens was reached',
  content_filter: 'cut off by the provider’s content filter',
}

/** What is to say under an answer: how it ended if not well, the model, who answered in its place, tokens, cost. */
function facts(message: Message): string[] {
  const { status, content, model, finish_reason, usage } = message
  return [
    endings[status] ?? endings[finish_reason ?? ''],
    status === 'complete' && !content && 'no text',
    model,
    served(message),
    usage && `${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out`,
    usage?.cost != null && dollars(usage.cost),
  ].filter((fact) => typeof fact === 'string')
}

/** Who answered, where that isn't the model that was asked for, or a dated name of it. */
function served({ model, served_model, provider }: Message): string | false {
  if (!served_model || served_model.startsWith(model?.split(':')[0] ?? '')) return false
  return `answered by ${served_model}${provider ? ` at ${provider}` : ''}`
}
