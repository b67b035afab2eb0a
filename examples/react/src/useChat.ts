import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from 'react'
import { follow, inProgress } from './follow'
import { ask, getConversations, getMessages, getModels, newId, Problem, request, stopReply } from './relay'
import type { Conversation, Message, Model, Question } from './relay'

const otherTabs = new BroadcastChannel('chat-relay')
const onHashChange = onEvent('hashchange')
const onVisibilityChange = onEvent('visibilitychange')
const nothing = { id: '', messages: [] as Message[], gone: false }

type Asked = Question & { key: string; leave?: AbortController; taken?: Promise<boolean> } // while it is on its way

/**
 * A chat with the relay, for one page; the open conversation's id is the URL's hash.
 *
 * The relay holds the truth: every action changes it there, then all is read again, and the reply followed if one is
 * in progress. A reload, a second tab and a lost connection are no different: read, and follow, which starts nothing.
 * Nothing is ever asked twice: a question has an id of this page's own, and the relay answers it once, however often it
 * comes.
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
  const asked = useRef<Asked>(undefined) // and not known to be taken: if it is sent again, it keeps its ids
  const [round, setRound] = useState(0)
  const refresh = useCallback(() => setRound((round) => round + 1), [])

  useEffect(() => {
    if (hidden) return // a browser has six connections to an origin for all its tabs: they are for those that are seen
    const left = new AbortController()
    let leave = () => {}
    let timer = 0
    const onReply = (reply: Message) => {
      setTrouble('')
      setRead((read) => ({ ...read, messages: read.messages.map((known) => (known.id === reply.id ? reply : known)) }))
      if (reply.status !== 'streaming') refresh()
    }
    const onLost = () => setTrouble('The connection is lost. The answer goes on as soon as it is back …')
    const onProblem = ({ status, message, retryAfter }: Problem) => {
      if (left.signal.aborted) return
      setTrouble(status === 404 ? '' : retryAfter ? `${message} Trying again …` : message)
      if (status === 404) setRead((read) => ({ id, messages: read.id === id ? read.messages : [], gone: true }))
      else if (retryAfter) timer = window.setTimeout(refresh, retryAfter * 1000)
    }
    const readAndFollow = async () => {
      setListed(await getConversations(pages, id, left.signal))
      const messages = await getMessages(id, left.signal)
      const reply = inProgress(messages)
      setRead({ id, messages, gone: false })
      if (reply) leave = follow(id, reply, onReply, onLost, onProblem)
      else setTrouble('')
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

  const { messages, gone } = read.id === id ? read : nothing
  const conversation = conversations.find((conversation) => conversation.id === id)
  const model = conversation?.default_model ?? picked ?? conversations[0]?.default_model
  const path = `/conversations/${id}`

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
    /** A reply is in progress. */
    busy: !gone && inProgress(messages) !== undefined,
    refresh,
    dismiss: () => setProblem(''),
    /** Asks; in a new conversation if none is open, and in place of an earlier message and all that followed it. */
    send: (content: string, inPlaceOf?: Message): Promise<boolean> => {
      const to = gone ? '' : id
      const at = to ? messages.findIndex(({ id }) => id === inPlaceOf?.id) : -1
      const key = `${to} ${at} ${content}`
      if (asked.current?.key !== key) {
        const after = at < 0 ? undefined : (messages[at - 1]?.id ?? null)
        asked.current = { key, to: to || newId(), isFirst: !to, id: newId(), content, after }
      }
      const question = asked.current
      return (question.taken ??= act(async () => {
        const { hash } = location
        const { signal } = (question.leave = new AbortController())
        await ask(question, model, ({ message }) => setProblem(`${message} Trying again …`), signal)
        if (location.hash === hash) location.hash = question.to // not if another one has been opened meanwhile
        if (asked.current === question) asked.current = undefined
        setProblem('')
      }).finally(() => (question.taken = undefined)))
    },
    /** Stops the answer or, if there is one, the question that is still on its way. */
    stop: () => {
      const sending = asked.current?.taken && asked.current
      sending?.leave?.abort()
      return act(() => stopReply(sending?.to ?? id))
    },
    /** Asks for the answer that the last question lacks, or for another one in place of this. */
    regenerate: (answer?: Message) =>
      act(async () => {
        if (answer && answer.status !== 'failed') await request('DELETE', `${path}/messages/${answer.id}`)
        await request('GET', `${path}/stream`)
      }),
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
