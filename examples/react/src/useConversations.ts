import { useCallback, useEffect, useState } from 'react'
import { getConversations, getModels, Problem, request } from './relay'
import type { Conversation, Model } from './types'
import { useReading } from './useReading'

/** The conversations that the relay has, with the open one however old it is, and the models for them. */
export function useConversations(id: string, onChange: () => void) {
  const [{ conversations, more }, setListed] = useState({ conversations: [] as Conversation[], more: false })
  const [pages, setPages] = useState(1)
  const [models, setModels] = useState<Model[]>([])
  const [picked, setPicked] = useState<string>()
  const [problem, setProblem] = useState('') // with the last action

  const read = useCallback(async (signal: AbortSignal) => setListed(await getConversations(pages, id, signal)), [pages, id])
  const { trouble, refresh, round } = useReading(read)
  useEffect(() => {
    if (models.length === 0) getModels().then(({ models }) => setModels(models), () => {}) // an id can be typed
  }, [models.length, round])

  const conversation = conversations.find((conversation) => conversation.id === id)
  /** Changes something at the relay, then reads it back; false if the relay refused. */
  const act = async (change: () => Promise<unknown>): Promise<boolean> => {
    setProblem('')
    try {
      await change()
      return true
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      if (error.status === 0) setProblem('The relay didn’t answer, so this may not have been done.')
      else if (error.status !== 404) setProblem(error.message)
      return false
    } finally {
      refresh()
      onChange()
    }
  }
  return {
    conversations,
    /** Lists more of them, if there are. */
    listMore: more ? () => setPages(pages + 1) : undefined,
    conversation,
    models,
    /** Of the next answers. */
    model: conversation?.default_model ?? picked ?? conversations[0]?.default_model,
    trouble,
    problem,
    refresh,
    dismiss: () => setProblem(''),
    rename: ({ id }: Conversation, title: string) =>
      act(() => request('PATCH', `/conversations/${id}`, { title: title.trim() || null })),
    remove: ({ id }: Conversation) => act(() => request('DELETE', `/conversations/${id}`)),
    /** The model of the next answers, in the open conversation and in new ones. */
    pickModel: (model: string) => {
      setPicked(model)
      return act(async () => conversation && request('PATCH', `/conversations/${id}`, { default_model: model }))
    },
  }
}
