import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { Page } from '@playwright/test'
import { packages } from './support/paths'
import { expect, test } from './support/test'

const cdn = 'https://cdn.jsdelivr.net/npm/'
const logo = 'https://cdn.redoc.ly/redoc/logo-mini.svg'
const cors = { 'Access-Control-Allow-Origin': '*' }

test.beforeEach(async ({ page }) => {
  await page.route(/^https?:\/\/(?!localhost)/, (route) => route.abort())
  await page.route(`${cdn}**`, (route) => route.fulfill({ path: published(route.request().url()), headers: cors }))
  await page.route(logo, (route) => route.fulfill({ body: '<svg xmlns="http://www.w3.org/2000/svg"/>', contentType: 'image/svg+xml' }))
})

test('Swagger UI shows every operation and tries one out, under its policy', async ({ page }) => {
  await page.goto('http://localhost:8001/docs')
  await expect(page.locator('.opblock')).toHaveCount(await operations(page))
  await expectPublishedFiles(page, ['swagger-ui.css', 'swagger-ui-bundle.js'])

  const health = page.locator('.opblock').filter({ has: page.locator('[data-path="/health"]') })
  await health.locator('.opblock-summary-control').click()
  await health.getByRole('button', { name: 'Try it out' }).click()
  await health.getByRole('button', { name: 'Execute' }).click()
  await expect(health.locator('.live-responses-table .response-col_status').last()).toHaveText(/^200/)
  await expect(health.locator('.live-responses-table')).toContainText('replies_in_progress')
})

test('ReDoc shows every operation and searches, under its policy', async ({ page }) => {
  await page.goto('http://localhost:8001/redoc')
  await expect(page.locator('[data-section-id^="operation/"]')).toHaveCount(await operations(page))
  await expectPublishedFiles(page, ['redoc.standalone.js'])

  await page.getByRole('textbox', { name: 'search' }).fill('stream')
  await expect(page.locator('[data-role="search:results"] li').first()).toBeVisible()
})

test.describe('a file of the CDN that was tampered with', () => {
  test.use({ mayComplain: /integrity|SwaggerUIBundle is not defined/ })

  test('isn’t run', async ({ page }) => {
    await page.route('**/swagger-ui-bundle.js', (route) =>
      route.fulfill({ body: 'document.title = "owned"', contentType: 'text/javascript', headers: cors }),
    )
    await page.goto('http://localhost:8001/docs')
    await expect(page).toHaveTitle('Chat relay: API')
    await expect(page.locator('.opblock')).toHaveCount(0)
  })
})

/** Where npm has put the file that the CDN serves under this address. */
function published(url: string): string {
  const file = url.replace(cdn, '').replace(/@[\d.]+\//, '/')
  return `${packages}/${file}`
}

async function operations(page: Page): Promise<number> {
  const { paths } = await (await page.request.get('http://localhost:8001/openapi.json')).json()
  const methods = Object.values(paths as Record<string, object>).flatMap(Object.keys)
  return methods.filter((method) => ['get', 'post', 'put', 'patch', 'delete', 'head', 'options'].includes(method)).length
}

/** The page loads these files, of the version that npm has under that name, with their hashes. */
async function expectPublishedFiles(page: Page, names: string[]) {
  const files = page.locator(`[integrity]`)
  await expect(files).toHaveCount(names.length)
  for (const file of await files.all()) {
    const url = (await file.getAttribute('src')) ?? (await file.getAttribute('href')) ?? ''
    expect(names).toContain(url.split('/').at(-1))
    expect(url).toContain(`@${versionOf(url)}/`)
    const hash = createHash('sha384').update(readFileSync(published(url))).digest('base64')
    await expect(file).toHaveAttribute('integrity', `sha384-${hash}`)
  }
}

function versionOf(url: string): string {
  const name = url.replace(cdn, '').replace(/@.*/, '')
  return JSON.parse(readFileSync(`${packages}/${name}/package.json`, 'utf8')).version
}
