"""The page in a real browser: no error, no request, charts drawn, filters and sorting at work."""

import pytest
from browser import CHROMIUM, Page

from plansim.files import write_atomic
from plansim.report import content_of, html, read_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
]


@pytest.fixture(scope="module")
def page(sweep_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_atomic(path, html(content_of(read_results([sweep_file]))))
    page = Page(path.as_uri(), prefers_color_scheme="light")
    yield page
    page.close()


def test_it_loads_without_errors_and_asks_for_nothing(page):
    assert page.errors == []
    assert [u for u in page.requests if not u.startswith(("file:", "data:"))] == []


def test_charts_draw(page):
    sizes = page(
        "[...document.querySelectorAll('figure svg')].map(s => [s.getBBox().width, s.getBBox().height])"
    )

    assert len(sizes) == 10
    assert all(w > 200 and h > 60 for w, h in sizes)


def test_no_text_leaves_its_chart(page):
    outside = page(
        "[...document.querySelectorAll('figure svg')].flatMap(s => { const f = s.getBoundingClientRect();"
        "return [...s.querySelectorAll('text')].filter(t => { const b = t.getBoundingClientRect();"
        "return b.width && (b.left < f.left - 2 || b.right > f.right + 2 || b.bottom > f.bottom + 2); })"
        ".map(t => t.textContent); })"
    )

    assert outside == []


def test_filters_act_on_rows_and_points(page):
    rows = "document.querySelectorAll('#options tbody tr:not(.off)').length"
    points = "document.querySelectorAll('svg .dot[data-profile]:not(.off)').length"
    all_rows, all_points = page(rows), page(points)
    page("f = document.getElementById('filters'); f.elements.profile.value = 'a100x8'")
    page("f.dispatchEvent(new Event('input'))")
    some = page(rows), page(points)
    page("f.elements.words.value = 'nothing has this'; f.dispatchEvent(new Event('input'))")
    none = page(rows)
    page("f.reset()")
    page("new Promise(done => setTimeout(done, 50))")

    assert 0 < some[0] < all_rows
    assert 0 < some[1] < all_points
    assert none == 0
    assert page(rows) == all_rows


def test_headings_sort(page):
    cost = "[...document.querySelectorAll('#options tbody tr')].map(r => Number(r.cells[4].dataset.v))"
    press = "b = document.querySelectorAll('#options th')[4]; b.querySelector('button').click(); b.ariaSort"

    assert page(press) == "ascending"
    assert page(cost) == sorted(page(cost))
    assert page(press) == "descending"
    assert page(cost) == sorted(page(cost), reverse=True)


def test_points_can_be_reached_by_keyboard_and_tell_what_they_are(page):
    page("d = document.querySelector('svg .dot'); d.focus()")

    assert page("document.activeElement === d && document.getElementById('tip').classList.contains('on')")
    assert page("document.getElementById('tip').textContent") == page("d.dataset.tip")
    assert page("[...document.querySelectorAll('svg .dot')].every(d => d.getAttribute('aria-label'))")


def test_everything_has_a_name(page):
    unnamed = page(
        "[...document.querySelectorAll('button, input, select, svg, section')].filter("
        "e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length"
        "|| e.getAttribute('aria-labelledby')))"
        ".map(e => e.outerHTML.slice(0, 80))"
    )

    assert unnamed == []
    assert page("document.querySelectorAll('h1').length") == 1


def test_dark_and_light(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page(colour)
    page("document.getElementById('theme').click()")
    dark = page(colour)
    page("document.getElementById('theme').click()")

    assert light == page(colour) == "rgb(246, 247, 249)"
    assert dark == "rgb(15, 20, 27)"


def test_still_no_errors(page):
    assert page.errors == []


def test_this_browser_would_tell(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('a'); nothing()</script>")
    page = Page(bad.as_uri())
    try:
        assert any("nothing is not defined" in e for e in page.errors)
        assert "http://127.0.0.1:9/x.png" in page.requests
    finally:
        page.close()
