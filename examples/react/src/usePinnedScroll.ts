import { useEffect, useRef, useState } from 'react'

const NEAR = 80 // px from the page's end that still count as being there

/** Keeps the page at its end while it grows, unless the reader has scrolled up. */
export function usePinnedScroll(conversation?: string) {
  const page = useRef<HTMLElement>(null)
  const pinned = useRef(true)
  const [atEnd, setAtEnd] = useState(true)

  useEffect(() => {
    let before = scrollY
    const onScroll = () => {
      const near = innerHeight + scrollY > document.documentElement.scrollHeight - NEAR
      if (near || scrollY < before) pinned.current = near // the page may have grown since it was scrolled to its end
      setAtEnd(near || pinned.current)
      before = scrollY
    }
    const onGrowth = new ResizeObserver(() => (pinned.current ? scrollToEnd() : onScroll()))
    onGrowth.observe(page.current!)
    addEventListener('scroll', onScroll, { passive: true })
    return () => {
      onGrowth.disconnect()
      removeEventListener('scroll', onScroll)
    }
  }, [])

  const toEnd = () => {
    pinned.current = true
    scrollToEnd()
  }
  useEffect(toEnd, [conversation])
  return { page, atEnd, toEnd }
}

const scrollToEnd = () => scrollTo(0, document.documentElement.scrollHeight)
