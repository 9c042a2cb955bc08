// The host lists templates in the order of the disk; those of this pack are numbered and come sorted.
import { api } from '../../scripts/api.js'

const pack = decodeURIComponent(new URL(import.meta.url).pathname.split('/').at(-2))
const listed = api.getWorkflowTemplates

api.getWorkflowTemplates = async function () {
  const templates = await listed.apply(this, arguments)
  templates[pack]?.sort()
  return templates
}
