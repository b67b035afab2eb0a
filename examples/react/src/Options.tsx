import { useState, type FormEvent } from 'react'
import { Icon } from './Icon'
import { newId, Problem, request } from './relay'
import type { Conversation } from './types'

type Props = { conversation?: Conversation; model?: string; onSaved: () => void }
type Values = NonNullable<Conversation['options']>

const search = { type: 'openrouter:web_search' }

/** What every question of the conversation is asked with; of many options the few that most people want. */
export function Options({ conversation, model, onSaved }: Props) {
  const [problem, setProblem] = useState('')
  const options = conversation?.options ?? {}

  const save = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault()
    const form = event.currentTarget
    try {
      await store(changed(options, new FormData(form)), conversation, model)
      setProblem('')
      form.closest<HTMLElement>('[popover]')?.hidePopover()
      onSaved()
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      setProblem(error.message)
    }
  }

  return (
    <>
      <button className="icon" popoverTarget="options" aria-label="Options">
        <Icon name="sliders" />
      </button>
      <div id="options" className="options" popover="auto">
        <form key={JSON.stringify([conversation?.id, options])} aria-label="Options" onSubmit={save}>
          <label>
            Effort
            <select name="effort" defaultValue={effortOf(options)}>
              <option value="">the model’s own</option>
              {[...new Set(['low', 'medium', 'high', effortOf(options)])].filter(Boolean).map((effort) => (
                <option key={effort}>{effort}</option>
              ))}
            </select>
          </label>
          <label>
            Temperature
            <input name="temperature" type="number" min="0" max="2" step="any" defaultValue={shown(options.temperature)} />
          </label>
          <label>
            Longest answer, in tokens
            <input name="max_tokens" type="number" min="1" step="1" defaultValue={shown(options.max_tokens)} />
          </label>
          <label>
            <input name="search" type="checkbox" defaultChecked={tools(options).some(isSearch)} />
            Search the web
          </label>
          {problem && (
            <p className="failure" role="alert">
              {problem}
            </p>
          )}
          <button>Save</button>
        </form>
      </div>
    </>
  )
}

/** In the open conversation, or in a new one that is made for them. */
async function store(options: Values, conversation: Conversation | undefined, default_model: string | undefined) {
  if (conversation) return request('PATCH', `/conversations/${conversation.id}`, { options })
  const id = newId()
  await request('POST', '/conversations', { id, default_model, options })
  location.hash = id
}

/** The options with what the form says; others stay as they are. */
function changed(options: Values, form: FormData): Values {
  const text = (name: string) => String(form.get(name) ?? '') || undefined
  const others = tools(options).filter((tool) => !isSearch(tool))
  const all = form.has('search') ? [...others, search] : others
  const reasoning = { ...(options.reasoning as object), effort: text('effort') }
  return {
    ...options,
    reasoning: Object.values(reasoning).some((value) => value !== undefined) ? reasoning : undefined,
    temperature: text('temperature') && Number(text('temperature')),
    max_tokens: text('max_tokens') && Number(text('max_tokens')),
    tools: all.length > 0 ? all : undefined,
  }
}

const shown = (value: unknown) => (typeof value === 'number' ? value : '')
const effortOf = ({ reasoning }: Values) => String((reasoning as { effort?: unknown } | null | undefined)?.effort ?? '')
const tools = ({ tools }: Values): unknown[] => (Array.isArray(tools) ? tools : [])
const isSearch = (tool: unknown) => (tool as { type?: unknown } | null)?.type === search.type
