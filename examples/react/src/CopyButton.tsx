import { useState } from 'react'
import { Icon } from './Icon'

/** Only where the browser lets a page copy: https and localhost. */
export function CopyButton({ label, text }: { label: string; text: () => string }) {
  const [copied, setCopied] = useState(false)
  if (!('clipboard' in navigator)) return null
  const copy = async () => {
    await navigator.clipboard.writeText(text())
    setCopied(true)
    setTimeout(() => setCopied(false), 2000)
  }
  return (
    <button className="quiet" onClick={copy} aria-label={copied ? 'Copied' : label}>
      <Icon name="copy" /> {copied ? 'Copied' : 'Copy'}
    </button>
  )
}
