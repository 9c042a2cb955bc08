// The page draws no name at a text box on the classic canvas; the nodes and subgraphs of this pack get it above.
import { app } from '../../scripts/app.js'

const LEFT = 15
const BASELINE = 8 // within the 10 pixels that the page leaves free above a box

const ours = (node) => (node.comfyClass ?? '').startsWith('UniAVGen') || /\(UniAVGen/.test(node.subgraph?.name ?? '')

app.registerExtension({
  name: 'UniAVGen.Labels',
  nodeCreated(node) {
    if (!ours(node)) return
    const before = node.onDrawForeground
    node.onDrawForeground = function (context, canvas) {
      before?.apply(this, arguments)
      if (this.flags?.collapsed || canvas?.low_quality) return
      context.save()
      context.font = '11px Arial'
      context.textAlign = 'left'
      context.fillStyle = '#bbb'
      for (const widget of this.widgets ?? []) {
        // y is 0 until the page has laid the node out
        if (widget.type === 'customtext' && !widget.hidden && widget.y) context.fillText(widget.label ?? widget.name, LEFT, widget.y + BASELINE)
      }
      context.restore()
    }
  }
})
