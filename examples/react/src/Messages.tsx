import { useEffect, useState } from 'react'
import { CopyButton } from './CopyButton'
import { dollars } from './format'
import { Icon } from './Icon'
import { Markdown } from './Markdown'
import { Sources } from './Sources'
import type { Message } from './types'

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

type AnswerProps = { message: Message; older?: Message[]; model?: string; writing: boolean; onRegenerate?: () => void }

/**
 * `older` are the answers that this one has replaced, to look at; `model` is the one that would answer next;
 * `onRegenerate` is there if this answer may be replaced.
 */
export function Answer({ message: newest, older = [], model, writing, onRegenerate }: AnswerProps) {
  const versions = [...older, newest]
  const [chosen, setChosen] = useState<number>()
  const message = (!writing && chosen !== undefined && versions[chosen]) || newest
  const { content, reasoning, error, annotations } = message
  return (
    <article
      className={writing ? 'answer writing' : 'answer'}
      aria-label={`Answer of ${message.model}`}
      aria-busy={writing}
      data-status={message.status}
    >
      {reasoning && <Reasoning key={message.id} text={reasoning} isComing={writing && !content} />}
      {content && <Markdown text={content} />}
      {annotations && <Sources annotations={annotations} />}
      {writing && !content && <Typing />}
      {error && <Failure error={error} other={model !== message.model ? model : undefined} onRetry={onRegenerate} />}
      {!writing && (
        <footer>
          {older.length > 0 && <Versions count={versions.length} shown={versions.indexOf(message)} onShow={setChosen} />}
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

/** Open while it comes; then it says how long that took, if this page has seen it come. */
function Reasoning({ text, isComing }: { text: string; isComing: boolean }) {
  const [seconds, setSeconds] = useState<number>()
  useEffect(() => {
    if (!isComing) return
    const began = Date.now()
    return () => setSeconds(Math.max(1, Math.round((Date.now() - began) / 1000)))
  }, [isComing])
  return (
    <details open={isComing}>
      <summary>{isComing ? 'Thinking …' : seconds === undefined ? 'Reasoning' : `Thought for ${seconds} s`}</summary>
      <Markdown text={text} />
    </details>
  )
}

function Versions({ count, shown, onShow }: { count: number; shown: number; onShow: (index: number) => void }) {
  return (
    <span className="versions" role="group" aria-label="Versions of the answer">
      <button className="quiet" disabled={shown === 0} onClick={() => onShow(shown - 1)} aria-label="Earlier version">
        ‹
      </button>
      {shown + 1}/{count}
      <button className="quiet" disabled={shown === count - 1} onClick={() => onShow(shown + 1)} aria-label="Later version">
        ›
      </button>
    </span>
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
        {onRetry && !error.retryable && !other && (
          <>
            <br />
            Choose another model, or edit your message.
          </>
        )}
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
