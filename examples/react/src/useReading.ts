import { useEffect, useReducer, useRef, useState, useSyncExternalStore } from 'react'
import { Problem } from './relay'

const onHidden = onEvent('visibilitychange')

/** Whether nobody sees the page. A browser has six connections to an origin for all its tabs: they are for the seen ones. */
export const useHidden = () => useSyncExternalStore(onHidden, () => document.hidden, () => true)

/**
 * Reads from the relay while the page is seen: at first, when `read` changes, on `refresh`, when the network is back, and
 * after a problem that may pass. `onProblem` hears of one and returns what to tell of it.
 */
export function useReading(read: (signal: AbortSignal) => Promise<void>, onProblem = ({ message }: Problem) => message) {
  const hidden = useHidden()
  const [round, refresh] = useReducer((round: number) => round + 1, 0)
  const [trouble, setTrouble] = useState('')
  const told = useRef(onProblem)
  useEffect(() => {
    told.current = onProblem
  })

  useEffect(() => {
    if (hidden) return
    const left = new AbortController()
    let timer = 0
    const onFailure = (problem: Problem) => {
      if (left.signal.aborted) return
      const message = told.current(problem)
      setTrouble(message && problem.retryAfter ? `${message} Trying again …` : message)
      if (problem.retryAfter) timer = window.setTimeout(refresh, problem.retryAfter * 1000)
    }
    read(left.signal).then(() => left.signal.aborted || setTrouble(''), onFailure)
    return () => {
      left.abort()
      clearTimeout(timer)
    }
  }, [read, hidden, round])
  useEffect(() => onEvent('online')(refresh), [])

  return { trouble, refresh: refresh as () => void, round }
}

export function onEvent(type: string, target?: EventTarget) {
  return (listener: () => void) => {
    const source = target ?? window // which a server doesn't have
    source.addEventListener(type, listener)
    return () => source.removeEventListener(type, listener)
  }
}
