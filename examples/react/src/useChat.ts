import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from 'react'
import { follow, isOwed, withReply } from './follow'
import { ask, getConversations, getMessages, getModels, Problem, request, stopReply } from './relay'
import type { Conversation, Message, Model } from './relay'

const otherTabs = new BroadcastChannel('chat-relay')
const onHashChange = onEvent('hashchange')
const onVisibilityChange = onEvent('visibilitychange')
const nothing = { id: '', messages: [] as Message[], gone: false, refused: false }

/**
 * A chat with the relay, for one page; the open conversation's id is the URL's hash.
 *
 * The relay holds the truth: every action changes it there, then all is read again, and the reply followed if one is
 * owed. A reload, a second tab and a lost connection are no different: read, and follow. Nothing is ever asked twice,
 * for the relay answers each question once, however often its answer is followed.
 */
export function useChat() {
  const id = useSyncExternalStore(onHashChange, () => encodeURIComponent(location.hash.slice(1)), () => '')
  const hidden = useSyncExternalStore(onVisibilityChange, () => document.hidden, () => true)
  const [{ conversations, more }, setListed] = useState({ conversations: [] as Conversation[], more: false })
  const [pages, setPages] = useState(1) // of conversations
  const [read, setRead] = useState(nothing)
  const [models, setModels] = useState<Model[]>([])
  const [picked, setPicked] = useState<string>()
  const [trouble, setTrouble] = useState('') // with reading and following
  const [problem, setProblem] = useState('') // with the last action
  const stopWanted = useRef('') // the conversation whose reply had not begun when it was to be stopped
  const [round, setRound] = useState(0)
  const refresh = useCallback(() => setRound((round) => round + 1), [])

  useEffect(() => {
    if (hidden) return // a browser has six connections to an origin for all its tabs: they are for those that are seen
    const left = new AbortController()
    let leave = () => {}
    let timer = 0
    const onReply = (reply: Message) => {
      setTrouble('')
      setRead((read) => ({ ...read, messages: withReply(read.messages, reply) }))
      if (reply.status !== 'streaming') refresh()
      else if (stopWanted.current === id) {
        stopWanted.current = ''
        stopReply(id).catch(() => {}) // it goes on, and can be stopped again
      }
    }
    const onLost = () => setTrouble('The connection is lost. The answer goes on as soon as it is back …')
    const onProblem = ({ status, message, retryAfter }: Problem) => {
      if (left.signal.aborted) return
      setTrouble(status === 404 ? '' : retryAfter ? `${message} Trying again …` : message)
      const known = (read: typeof nothing) => (read.id === id ? read.messages : [])
      if (status === 404) setRead((read) => ({ ...nothing, id, messages: known(read), gone: true }))
      else if (retryAfter) timer = window.setTimeout(refresh, retryAfter * 1000)
      else setRead((read) => ({ ...read, refused: true }))
    }
    const readAndFollow = async () => {
      setListed(await getConversations(pages, id, left.signal))
      const messages = await getMessages(id, left.signal)
      setRead({ ...nothing, id, messages })
      if (isOwed(messages)) leave = follow(id, onReply, onLost, onProblem)
      else setTrouble('')
      if (!isOwed(messages)) stopWanted.current = ''
    }
    readAndFollow().catch(onProblem)
    return () => {
      left.abort()
      leave()
      clearTimeout(timer)
    }
  }, [id, hidden, pages, round, refresh])

  useEffect(() => {
    if (models.length === 0) getModels().then(({ models }) => setModels(models), () => {}) // an id can be typed
  }, [models.length, round])

  useEffect(() => onEvent('online')(refresh), [refresh])
  useEffect(() => onEvent('message', otherTabs)(refresh), [refresh])

  /** Changes something at the relay, then reads it back; false if the relay refused. */
  const act = async (change: () => Promise<unknown>): Promise<boolean> => {
    setProblem('')
    stopWanted.current = ''
    try {
      await change()
      return true
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      if (error.status === 0) setProblem('The relay didn’t answer, so this may not have been done.')
      else if (error.status !== 404) setProblem(error.message) // not there any more: reading will find out
      return false
    } finally {
      refresh()
      otherTabs.postMessage('changed')
    }
  }

  const { messages, gone, refused } = read.id === id ? read : nothing
  const conversation = conversations.find((conversation) => conversation.id === id)
  const model = conversation?.default_model ?? picked ?? conversations[0]?.default_model
  const path = `/conversations/${id}`
  const create = async () => {
    const { hash } = location
    const { id } = await request<Conversation>('POST', '/conversations', { default_model: model })
    if (location.hash === hash) location.hash = id // not if another one has been opened meanwhile
    return id
  }

  return {
    conversations,
    /** Lists more of them, if there are. */
    listMore: more ? () => setPages(pages + 1) : undefined,
    conversation,
    messages,
    models,
    model,
    trouble,
    problem,
    /** The relay no longer has the open conversation; `messages` are what this page still knows. */
    gone,
    loading: read.id !== id,
    /** A reply is in progress or owed, and the relay hasn't refused it (`trouble` says why). */
    busy: !gone && !refused && isOwed(messages),
    refresh,
    dismiss: () => setProblem(''),
    /** Asks; in a new conversation if none is open, and in place of an earlier message and all that followed it. */
    send: (content: string, inPlaceOf?: Message) =>
      act(() => ask(async () => (id && !gone ? id : create()), content, inPlaceOf && `${path}/messages/${inPlaceOf.id}`)),
    stop: () => act(async () => (stopWanted.current = (await stopReply(id)) ? '' : id)),
    /** Asks for another answer in place of this one, a failed one among them. */
    regenerate: (answer: Message) => act(() => request('DELETE', `${path}/messages/${answer.id}`)),
    rename: ({ id }: Conversation, title: string) =>
      act(() => request('PATCH', `/conversations/${id}`, { title: title.trim() || null })),
    remove: (conversation: Conversation) =>
      act(async () => {
        await request('DELETE', `/conversations/${conversation.id}`)
        if (location.hash.slice(1) === conversation.id) location.hash = ''
      }),
    /** The model of the next answers, in this conversation and in new ones. */
    pickModel: (model: string) => {
      setPicked(model)
      return act(async () => conversation && request('PATCH', path, { default_model: model }))
    },
  }
}

function onEvent(type: string, target?: EventTarget) {
  return (listener: () => void) => {
    const source = target ?? window // which a server doesn't have
    source.addEventListener(type, listener)
    return () => source.removeEventListener(type, listener)
  }
}
