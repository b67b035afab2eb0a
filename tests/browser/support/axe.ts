import axe from 'axe-core'
import { expect, type Page } from '@playwright/test'

/** No violation of any rule of axe, best practices included, in the page as it is now. */
export async function expectAccessible(page: Page) {
  await page.evaluate(axe.source)
  const violations = await page.evaluate(async () => {
    const { violations } = await (window as unknown as { axe: typeof axe }).axe.run()
    return violations.map(({ id, help, nodes }) => ({ id, help, nodes: nodes.map(({ html, any }) => [html, any[0]?.message]) }))
  })
  expect(violations).toEqual([])
}
