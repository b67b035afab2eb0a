import { isValidElement, memo, useDeferredValue, useRef, type ReactNode } from 'react'
import ReactMarkdown, { type Components } from 'react-markdown'
import rehypeHighlight from 'rehype-highlight'
import remarkGfm from 'remark-gfm'
import { CopyButton } from './CopyButton'

/** Markdown without raw HTML; links keep to safe protocols. A long text may lag behind its stream, typing never does. */
export function Markdown({ text }: { text: string }) {
  const shown = useDeferredValue(text)
  return (
    <div className="markdown" dir="auto" aria-busy={shown !== text}>
      <Rendered text={shown} />
    </div>
  )
}

const Rendered = memo(function Rendered({ text }: { text: string }) {
  return (
    <ReactMarkdown remarkPlugins={[remarkGfm]} rehypePlugins={[rehypeHighlight]} components={components}>
      {text}
    </ReactMarkdown>
  )
})

const components: Components = {
  a: Link,
  // A picture is a request to wherever the model says, with whatever it puts into the address: the reader decides.
  img: ({ src, alt }) => <Link href={String(src)}>Picture: {alt || String(src)}</Link>,
  // Without the ids that footnotes bring: they are the same in every answer, and a link to a hash isn't one here.
  h2: ({ children }) => <h2>{children}</h2>,
  li: ({ className, children }) => <li className={className}>{children}</li>,
  pre: ({ children }) => <Code>{children}</Code>,
  table: ({ children }) => (
    <div className="wide" tabIndex={0} role="group" aria-label="Table">
      <table>{children}</table>
    </div>
  ),
}

/** Only its text if the address wasn't safe (it is empty then) or is a hash, which would be a conversation's here. */
function Link({ href, children }: { href?: string; children?: ReactNode }) {
  if (!href || href.startsWith('#')) return children
  return (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  )
}

function Code({ children }: { children?: ReactNode }) {
  const pre = useRef<HTMLPreElement>(null)
  const { className } = isValidElement<{ className?: string }>(children) ? children.props : {}
  return (
    <figure className="code">
      <figcaption>
        {className?.match(/language-(\S+)/)?.[1] ?? 'text'}
        <CopyButton label="Copy the code" text={() => pre.current?.textContent ?? ''} />
      </figcaption>
      <pre ref={pre} tabIndex={0} dir="ltr">
        {children}
      </pre>
    </figure>
  )
}
