// Shows the chosen person, the caption and the words of the recording on UniAVGenPuppet.
import { app } from '../../scripts/app.js'

const folder = new URL('./puppets/', import.meta.url)
const puppets = fetch(new URL('puppets.json', folder)).then((answer) => answer.json())

function element(name, parent, style) {
  const made = document.createElement(name)
  made.style.cssText = style
  parent?.append(made)
  return made
}

app.registerExtension({
  name: 'UniAVGen.Puppet',
  nodeCreated(node) {
    if (node.comfyClass !== 'UniAVGenPuppet') return
    const box = element('div', null, 'display:flex;gap:8px;width:100%;height:100%;font-size:11px')
    const image = element('img', box, 'flex:1 1 50%;min-width:0;object-fit:contain')
    const text = element('div', box, 'flex:1 1 50%;user-select:text;overflow:auto;color:var(--input-text)')
    const widget = node.addDOMWidget('preview', 'puppet', box, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => 150
    })
    widget.serialize = false
    const choice = node.widgets.find(({ name }) => name === 'puppet')
    const show = async () => {
      const facts = (await puppets)[choice.value]
      if (!facts) return
      image.src = new URL(`${facts.file}.png`, folder)
      text.textContent = `Caption: ${facts.caption}`
      element('div', text, 'margin-top:8px').textContent = `Words of the recording: ${facts.words}`
    }
    for (const [owner, name] of [[choice, 'callback'], [node, 'onConfigure']]) {
      const before = owner[name]
      owner[name] = function () {
        show()
        return before?.apply(this, arguments)
      }
    }
    show()
  }
})
