import { useCallback, useEffect, useReducer, useRef, useState } from 'react'
import { follow, inProgress } from './follow'
import { ask, begin, getMessages, newId, Problem, request, stopReply } from './relay'
import type { Begun, Question } from './relay'
import type { Message } from './types'
import { useHidden, useReading } from './useReading'

const nothing = { id: '', messages: [] as Message[], gone: false }

type Options = {
  /** The conversation, none for a new one. */
  id?: string
  /** Hears the id of a conversation that the first question has made: hand it back as `id`. */
  onCreate: (id: string) => void
  /** Of new conversations; the relay's own if there is none. */
  model?: string
  /** Hears that the relay has something new of the conversation, for lists and other tabs. */
  onChange?: () => void
}

type Asked = Question & { key: string; leave?: AbortController; taken?: Promise<boolean> } // while it is on its way

/**
 * A chat with the relay: one conversation, its messages, and what can be done in it.
 *
 * The relay holds the truth: a conversation that is opened is read, and its reply followed if one is in progress, which
 * starts nothing. So a reload, a second tab and a lost connection are no different. Nothing is ever asked twice: a
 * question has an id of this page's own, and the relay answers it once, however often it comes.
 */
export function useRelayChat({ id = '', onCreate, model, onChange }: Options) {
  const hidden = useHidden()
  const [read, setRead] = useState(nothing)
  const [older, setOlder] = useState<Record<string, Message[]>>({}) // by question: its answers before this one
  const [lost, setLost] = useState('') // the connection of the answer
  const [problem, setProblem] = useState('') // with the last action
  const asked = useRef<Asked>(undefined) // and not seen to have arrived: if it is sent again, it keeps its ids
  const open = useRef(id)
  const broken = useRef(false) // the stream was refused: once all has been read, it is followed anew
  const [turn, followAnew] = useReducer((turn: number) => turn + 1, 0)
  const made = useRef('') // by the last question, which is all there is to read
  const isFirst = useRef(false) // the reply that is to come; there is nothing to tell of its end
  const tell = useRef(onChange)
  useEffect(() => {
    open.current = id
    tell.current = onChange
  })

  const readMessages = useCallback(
    async (signal: AbortSignal) => {
      if (id && made.current === id) return void (made.current = '')
      const messages = await getMessages(id, signal)
      setRead((read) => ({ id, messages: messages.map((one) => later(one, read.messages)), gone: false }))
      if (!inProgress(messages)) setLost('')
      if (broken.current) followAnew()
    },
    [id],
  )
  const { trouble, refresh } = useReading(readMessages, ({ status, message }) => {
    if (status !== 404) return message
    setLost('')
    setRead((read) => ({ id, messages: read.id === id ? read.messages : [], gone: true }))
    return ''
  })

  const { messages, gone } = read.id === id ? read : nothing
  const reply = gone ? undefined : inProgress(messages)
  const replyId = reply?.id
  const latest = useRef(reply)
  useEffect(() => {
    latest.current = reply
  })
  useEffect(() => {
    const from = latest.current
    broken.current = false
    if (hidden || !replyId || !from) return
    const onReply = (reply: Message) => {
      setLost('')
      setRead((read) => ({ ...read, messages: read.messages.map((known) => (known.id === reply.id ? later(reply, [known]) : known)) }))
      if (reply.status === 'streaming') return
      if (!isFirst.current) tell.current?.()
      isFirst.current = false
      if (reply.status === 'stopped') refresh() // by somebody else, who may have deleted the conversation
    }
    const onLost = () => setLost('The connection is lost. The answer goes on as soon as it is back …')
    let timer = 0
    const onProblem = (problem?: Problem) => {
      broken.current = true
      if (problem) setLost(problem.message)
      timer = window.setTimeout(refresh, (problem?.retryAfter ?? 0) * 1000) // reading finds out what has become of it
    }
    const leave = follow(id, from, onReply, onLost, onProblem)
    return () => {
      leave()
      clearTimeout(timer)
    }
  }, [id, replyId, hidden, turn, refresh])

  /** Changes something at the relay; false if it refused, and then all is read again. */
  const act = async (change: () => Promise<unknown>): Promise<boolean> => {
    setProblem('')
    try {
      await change()
      return true
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      if (error.status === 0) setProblem('The relay didn’t answer, so this may not have been done.')
      else if (error.status !== 404) setProblem(error.message) // not there any more: reading will find out
      refresh()
      return false
    } finally {
      if (!made.current) onChange?.()
    }
  }

  /** Puts these in the place of what there is after that many messages, with the reply that is to come. */
  const show = (to: string, kept: Message[] | undefined, added: Message[], begun?: Begun) => {
    if (!begun) return refresh()
    setRead((read) => {
      const before = kept ?? (read.id === to ? read.messages : [])
      const after = [...added, message({ ...begun, role: 'assistant', status: 'streaming' })]
      return { id: to, messages: [...before.filter(({ id }) => !after.some((one) => one.id === id)), ...after], gone: false }
    })
  }

  return {
    messages,
    /** Of each question, by its id: the answers that others have replaced since the page was opened. */
    older,
    trouble: lost || trouble,
    problem,
    /** The relay no longer has the conversation; `messages` are what this page still knows. */
    gone,
    loading: read.id !== id,
    /** A reply is in progress. */
    busy: reply !== undefined,
    refresh,
    dismiss: () => setProblem(''),
    /** Asks; in a new conversation if none is open, and in place of an earlier message and all that followed it. */
    send: (content: string, inPlaceOf?: Message): Promise<boolean> => {
      const to = gone ? '' : id
      const at = to ? messages.findIndex(({ id }) => id === inPlaceOf?.id) : -1
      const key = `${to} ${at} ${content}`
      const last = asked.current
      const isSame = last?.key === key && (last.taken || !messages.some(({ id }) => id === last.id))
      const after = at < 0 ? undefined : (messages[at - 1]?.id ?? null)
      const question: Asked = isSame ? last : { key, to: to || newId(), isFirst: !to, id: newId(), content, after }
      asked.current = question
      return (question.taken ??= act(async () => {
        const { signal } = (question.leave = new AbortController())
        const begun = await ask(question, model, ({ message }) => setProblem(`${message} Trying again …`), signal)
        if (asked.current === question) asked.current = undefined
        setProblem('')
        if (open.current !== id) return // another one has been opened meanwhile
        show(question.to, at < 0 ? undefined : messages.slice(0, at), [message({ ...question, role: 'user' })], begun)
        if (question.to === id) return
        made.current = begun ? question.to : ''
        isFirst.current = begun !== undefined
        onCreate(question.to)
      }).finally(() => (question.taken = undefined)))
    },
    /** Stops the answer or, if there is one, the question that is still on its way. */
    stop: () => {
      const sending = asked.current?.taken && asked.current
      sending?.leave?.abort()
      return act(async () => {
        const stopped = await stopReply(sending?.to ?? id)
        if (stopped) setRead((read) => ({ ...read, messages: read.messages.map((one) => (one.id === stopped.id ? stopped : one)) }))
        else refresh()
      })
    },
    /** Asks for the answer that the last question lacks, or for another one in place of this. */
    regenerate: (answer?: Message) =>
      act(async () => {
        const path = `/conversations/${id}`
        if (answer && answer.status !== 'failed') await request('DELETE', `${path}/messages/${answer.id}`)
        const begun = await begin('GET', `${path}/stream`)
        const kept = messages.filter((one) => one !== answer)
        const question = kept.at(-1)?.id ?? ''
        if (answer?.content) setOlder((older) => ({ ...older, [question]: [...(older[question] ?? []), answer] }))
        show(id, kept, [], begun)
      }),
  }
}

/** A reply in progress as far as it is known: it may have been followed further here than what has been read of it. */
function later(message: Message, known: Message[]): Message {
  const here = known.find(({ id }) => id === message.id)
  if (!here || message.status !== 'streaming') return message
  return here.status !== 'streaming' || lengthOf(here) > lengthOf(message) ? here : message
}

const lengthOf = ({ content, reasoning }: Message) => content.length + (reasoning?.length ?? 0)

function message(fields: Pick<Message, 'id' | 'role'> & Partial<Message>): Message {
  const { id, role, content = '', model = null, status = 'complete' } = fields
  const unknown = { served_model: null, provider: null, annotations: null, last_event_id: null }
  const none = { reasoning: null, finish_reason: null, usage: null, error: null, ...unknown }
  return { ...none, id, role, content, model, status }
}
