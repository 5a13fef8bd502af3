"""The explorer page in a real browser, served as the Serve application serves it, with a key."""

from __future__ import annotations

import asyncio
import itertools
import json
import urllib.request
from urllib.parse import parse_qs, urlsplit

import pytest
from infra.bench.inputs.browser import Page, find_chromium

pytest.importorskip("websockets")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="found no Chromium on the PATH"),
    pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning"),
]

KEY = "the-key-of-the-serving-tests"
MAP_IS_DRAWN = "document.querySelector('.stage')?.dataset.points"
COUNT = "document.querySelector('#selection-count')?.textContent"


async def enter_key(page, key=KEY):
    await page.until("document.querySelector('#key-dialog')?.open")
    await page.run(f"document.querySelector('#key').value = {json.dumps(key)}")
    await page.run("document.querySelector('#key-form button').click()")


async def condition(page, text, button="#sql-form button[type=submit]"):
    await page.run(f"document.querySelector('#sql').value = {json.dumps(text)}")
    await page.run(f"document.querySelector({json.dumps(button)}).click()")


async def hash_of(page):
    return {name: values[0] for name, values in parse_qs(await page.run("location.hash.slice(1)")).items()}


def test_a_user_finds_crops_looks_at_them_and_compares_representations(address, lake):
    async def session():
        async with Page() as page:
            await visit(page, address, lake)
            await compare(page, address, lake)

    asyncio.run(asyncio.wait_for(session(), 300))


def test_a_narrow_window_shows_everything_and_the_title_names_the_map_that_is_shown(address, lake):
    async def session():
        async with Page() as page:
            await page.send(
                "Emulation.setDeviceMetricsOverride", width=600, height=900, deviceScaleFactor=1, mobile=False
            )
            await page.go(f"{address}/explore/#method=umap&colour=gene")
            await enter_key(page)
            await page.until(MAP_IS_DRAWN)
            outside = await page.run(
                "[...document.querySelectorAll('header *, #sql-form *, #plots, aside *')]"
                ".filter((each) => each.getBoundingClientRect().right > 600).map((each) => each.id || each.tagName)"
            )
            assert outside == []
            assert await page.run("document.documentElement.scrollWidth") == 600
            for _ in range(200):
                title, note = await page.run(
                    "[document.querySelector('.plot-title').textContent, "
                    "document.querySelector('.plot-note').textContent]"
                )
                assert title.endswith("PCA" if "PCA is shown" in note else "UMAP"), (title, note)
                if not note:
                    break
                await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(session(), 300))


async def visit(page, address, lake):
    """Find crops by a condition and a lasso, look at plates and at one crop."""
    n = len(lake.crop_ids)
    kras = lake.catalog.sql("SELECT count(*) AS n FROM crops JOIN wells USING (well_id) WHERE gene = 'KRAS'")["n"][
        0
    ].as_py()
    await page.go(f"{address}/explore/#method=pca&colour=gene")
    await enter_key(page, "a-key-of-nobody-at-all")
    await page.until("document.querySelector('#key-reason').textContent.includes('not one of')")
    await enter_key(page)
    await page.until(f"{MAP_IS_DRAWN} === '{n}'")
    legend = await page.run("[...document.querySelectorAll('.entry-label')].map((each) => each.textContent)")
    assert sorted(legend) == ["GAPDH", "KRAS", "TP53"]

    await condition(page, "gene = 'KRAS'")
    await page.until(f"{COUNT} === '{kras} selected'")
    await page.until(f"document.querySelectorAll('#panel-montage .tile').length === {min(kras, 24)}")
    await page.until("document.querySelectorAll('.channels tbody tr').length === 2")
    assert (await hash_of(page))["select"] == "gene = 'KRAS'"

    # A link to this view shows the same selection in another tab.
    await page.run("window.isBefore = true; location.reload()")  # the old page may answer for a while
    await page.until(f"!window.isBefore && ({MAP_IS_DRAWN}) === '{n}' && {COUNT} === '{kras} selected'")

    await condition(page, "gene = 'nobody' OR", "#show-only")
    await page.until("document.querySelector('#trouble').textContent.startsWith('where: ')")
    await condition(page, "plate = 'P1'", "#show-only")
    await page.until("!document.querySelector('#show-all').hidden")

    # A lasso around the whole map selects what is shown of it; the address then says no condition.
    await page.press("l")
    box = json.loads(await page.run("JSON.stringify(document.querySelector('.stage').getBoundingClientRect())"))
    left, top = box["x"] + 4, box["y"] + 4
    right, bottom = left + box["width"] - 8, top + box["height"] - 8
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    await page.drag(path_through(corners))
    await page.until(f"{COUNT} === '{n - kras} selected'")
    assert "select" not in await hash_of(page)
    await page.press("Escape")

    await page.press("2")
    await page.until("document.querySelectorAll('#panel-plates figure').length === 2")
    assert await page.run("document.querySelectorAll('.well.has-selected').length") == 2

    await page.press("1")
    await page.until("document.querySelector('#panel-montage .tile')")
    await page.run("document.querySelector('#panel-montage .tile').click()")
    await page.until("document.querySelectorAll('#panel-crop .tile').length > 10")
    crop_id = (await hash_of(page))["crop"]
    nearest = await page.run("document.querySelectorAll('#panel-crop .tiles:not(.large) .tile span')[0].textContent")
    hit = search(address, crop_id)
    assert nearest == f"{hit['similarity']:.3f}"
    assert await page.run("document.querySelectorAll('.ring.crop').length") == 1

    await page.press("?")
    await page.until("document.querySelector('#help-dialog').open")
    assert await page.run("document.querySelectorAll('#shortcuts dt').length") > 8

    assert all(each.startswith((address, "blob:", "data:")) for each in page.requested), page.requested
    problems = [line for line in page.console if "401" not in line and "422" not in line and "where: " not in line]
    assert problems == []


async def compare(page, address, lake):
    """Two maps side by side share the selection."""
    n, name = len(lake.crop_ids), lake.card.representation_id
    await page.go("about:blank")
    await page.go(f"{address}/explore/#method=pca&compared={name}&select=gene%20%3D%20'TP53'")
    await page.until("document.querySelectorAll('.stage').length === 2")
    await page.until(f"[...document.querySelectorAll('.stage')].every((each) => each.dataset.points === '{n}')")
    await page.until("document.querySelectorAll('#panel-montage .tile').length")
    counts = await page.run(
        "import('./app.js').then(({ slots }) => Object.values(slots).map("
        "({ scatter }) => scatter.plot.get('selectedPoints').length))"
    )
    expected = lake.catalog.sql("SELECT count(*) AS n FROM crops JOIN wells USING (well_id) WHERE gene = 'TP53'")["n"][
        0
    ].as_py()
    assert counts == [expected, expected]
    assert urlsplit(await page.run("location.href")).path == "/explore/"


def path_through(corners, steps=8):
    """Places on the way from corner to corner."""
    return [
        (x + (x_next - x) * i / steps, y + (y_next - y) * i / steps)
        for (x, y), (x_next, y_next) in itertools.pairwise(corners)
        for i in range(steps)
    ]


def search(address, crop_id):
    request = urllib.request.Request(
        f"{address}/v1/search", json.dumps({"crop_id": crop_id, "k": 1}).encode(),
        {"authorization": f"Bearer {KEY}", "content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)["hits"][0]
