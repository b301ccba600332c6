"""A document as one HTML page that needs nothing else: style, plots and pictures are inside."""

import base64
import re

from compress.reporting.document import (
    Block,
    Code,
    Definitions,
    Document,
    Figure,
    Fold,
    Gallery,
    Heading,
    Image,
    KeyFigures,
    Paragraph,
    Sample,
)
from compress.reporting.escaping import escape_html
from compress.reporting.stylesheet import STYLESHEET
from compress.reporting.tables import ReportTable

# The policy ensures that a page that is sent around fetches and runs nothing.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def html(document: Document) -> str:
    """The whole report as a page. Tables and figures are numbered in reading order."""
    numbers = {"Table": 0, "Figure": 0}
    parts = [_block(block, numbers) for block in document.blocks]
    first = next((i for i, b in enumerate(document.blocks) if isinstance(b, Heading)), len(parts))
    body = "\n".join([*parts[:first], _contents(document), *parts[first:]])
    return _PAGE.format(title=escape_html(document.title), style=STYLESHEET, body=body)


def _block(block: Block, numbers: dict[str, int]) -> str:
    match block:
        case Heading():
            anchor = f' id="{_anchor(block.text)}"' if block.level == 2 else ""
            return f"<h{block.level}{anchor}>{escape_html(block.text)}</h{block.level}>"
        case Paragraph():
            kind = "lead" if block.is_lead else "note" if block.is_note else ""
            mark = f' class="{kind}"' if kind else ""
            return f"<p{mark}>{escape_html(block.text)}</p>"
        case KeyFigures():
            return f'<dl class="key">{"".join(_key_figure(*item) for item in block.items)}</dl>'
        case ReportTable():
            caption = _caption("Table", block.caption, numbers)
            label = escape_html(block.caption)
            scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
            return f'<figure class="table">{caption}{scroll}\n{block.html()}\n</div></figure>'
        case Figure():
            images = "\n".join(_image(image) for image in block.images)
            kind = "plots" if block.images and block.images[0].svg else "pictures"
            kind += " halves" if block.is_halved else ""
            caption = _caption("Figure", block.caption, numbers)
            return f'<figure class="{kind}"><div>{images}</div>{caption}</figure>'
        case Definitions():
            items = (
                f"<dt>{escape_html(term)}</dt><dd>{escape_html(text)}</dd>"
                for term, text in block.items
            )
            return f'<dl class="terms">{"".join(items)}</dl>'
        case Code():
            return f"<pre><code>{escape_html(block.text.rstrip())}</code></pre>"
        case Gallery():
            samples = "".join(map(_sample, block.samples))
            title = f"<h3>{escape_html(block.title)}</h3>"
            return f'<section class="gallery">{title}<div>{samples}</div></section>'
        case Fold():
            inside = "\n".join(_block(one, numbers) for one in block.blocks)
            title = f'<summary id="{_anchor(block.title)}">{escape_html(block.title)}</summary>'
            return f"<details>{title}\n{inside}\n</details>"


def _contents(document: Document) -> str:
    tops = [
        block.title if isinstance(block, Fold) else block.text
        for block in document.blocks
        if isinstance(block, Fold) or (isinstance(block, Heading) and block.level == 2)
    ]
    links = "".join(f'<a href="#{_anchor(text)}">{escape_html(text)}</a>' for text in tops)
    return f'<nav aria-label="Contents">{links}</nav>' if tops else ""


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _caption(kind: str, text: str, numbers: dict[str, int]) -> str:
    numbers[kind] += 1
    return (
        f"<figcaption><b>{kind} {numbers[kind]}.</b> {escape_html(text.rstrip('.'))}.</figcaption>"
    )


def _key_figure(number: str, meaning: str, note: str) -> str:
    small = f"<dd class='note'>{escape_html(note)}</dd>" if note else ""
    return f"<div><dt>{escape_html(meaning)}</dt><dd>{escape_html(number)}</dd>{small}</div>"


def _sample(sample: Sample) -> str:
    lines = "".join(
        f'<span class="{"right" if is_right else "wrong"}">{escape_html(name)} '
        f"<small>({escape_html(confidence)})</small></span>"
        for name, confidence, is_right in sample.said
    )
    data = base64.b64encode(sample.jpeg).decode("ascii")
    picture = f'<img alt="{escape_html(sample.alt)}" src="data:image/jpeg;base64,{data}">'
    caption = f"<figcaption><b>{escape_html(sample.true)}</b>{lines}</figcaption>"
    return f"<figure>{picture}{caption}</figure>"


def _image(image: Image) -> str:
    alt = escape_html(image.alt)
    if image.svg:
        return image.svg.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)
    kind = "png" if image.file.lower().endswith(".png") else "jpeg"
    data = base64.b64encode(image.data).decode("ascii")
    return f'<img alt="{alt}" src="data:image/{kind};base64,{data}">'
