import type { Message } from './types'

/** The pages that an answer cites, each once. Their titles are text of strangers, and the links open elsewhere. */
export function Sources({ annotations }: { annotations: NonNullable<Message['annotations']> }) {
  const pages = new Map(annotations.map(({ url, title }) => [url, title]))
  return (
    <nav className="sources" aria-label="Sources">
      <ol>
        {[...pages].map(([url, title]) => (
          <li key={url}>
            <a href={url} target="_blank" rel="noopener noreferrer">
              {title ?? url}
            </a>
          </li>
        ))}
      </ol>
    </nav>
  )
}
