"""report.html: what it shows, that it needs no other file, and how it behaves in a browser."""

import math
import re

import pytest

from common.data import page
from common.data.images import write_image
from common.evaluation import metrics
from tests.browser import ask, needs_chromium
from tests.conftest import photo

ODD = '<script>alert(1)<&">\n\x1b[31m\udcff=.png'


def items(folder, values):
    """An item for each value, with a rainy and a derained picture."""
    found = []
    for k, value in enumerate(values):
        name = ODD if k == 0 else f"{k}.png"
        files = {"rainy": folder / "in" / name, "derained": folder / name}
        for n, file in enumerate(files.values()):
            write_image(file, photo(60, 90, 7 * k + n))
        found.append(page.Item(name, files, {"PSNR-Y": value, "SSIM-Y": 0.5 - k / 100}))
    return found


@pytest.fixture
def written(tmp_path):
    some = items(tmp_path, [20.5, 9.25, math.inf, math.nan, 100.0])
    page.write(tmp_path / page.NAME, "Rain & <more>", ["one", "two"], some, ("rainy", "derained"), None, "PSNR-Y")
    return tmp_path / page.NAME


def test_it_holds_everything_itself_and_runs_no_names(written):
    text = written.read_text(encoding="utf-8")
    assert "Rain &amp; &lt;more&gt;" in text and text.count("<script>") == 1 and "alert(1)<" not in text
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert len(sources) == 5 * 2 and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")


def test_few_are_all_shown_the_worst_first_and_of_many_the_ends(tmp_path, monkeypatch):
    some = items(tmp_path, [5.0, 2.0, math.nan, 7.0, 1.0, math.inf])
    assert [item.name for item in page.picked(some, "PSNR-Y")] == ["2.png", "4.png", "1.png", ODD, "3.png", "5.png"]
    monkeypatch.setattr(page, "SHOWN", 4)
    assert [item.name for item in page.picked(some, "PSNR-Y")] == ["2.png", "4.png", "3.png", "5.png"]
    assert [item.name for item in page.picked(some, None)] == [ODD, "1.png", "2.png", "3.png"]
    page.write(tmp_path / page.NAME, "t", [], some, ("rainy", "derained"), None, "PSNR-Y")
    text = (tmp_path / page.NAME).read_text()
    assert "4 of 6 images, the worst and the best, by PSNR-Y" in text and text.count("data-value") == 6 * 3
    assert text.count("<figure ") == 4


def test_a_picture_that_is_gone_leaves_its_row(tmp_path):
    some = items(tmp_path, [5.0, 2.0])
    some[1].pictures["derained"].unlink()
    page.write(tmp_path / page.NAME, "t", [], some, ("rainy", "derained"))
    text = (tmp_path / page.NAME).read_text()
    assert text.count("<figure ") == 1 and text.count("data-value") == 2 * 3


def test_large_pictures_are_made_smaller_for_the_page(tmp_path):
    write_image(tmp_path / "large.png", photo(1200, 2400, 1))
    page.write(tmp_path / page.NAME, "t", [], [page.Item("large", {"a": tmp_path / "large.png"}, {})], ("a", "a"))
    text = (tmp_path / page.NAME).read_text()
    assert f"aspect-ratio:{page.SIDE}/{page.SIDE // 2}" in text and len(text) < 500_000
    assert "<h2>Before and after</h2>\n<div" in text  # no number of pictures beside that of the lead


def test_the_table_of_metrics_as_a_page(tmp_path):
    table = metrics.Table()
    for k in range(2):
        rainy, derained = metrics.Scores(20 + k, 0.5, 21), metrics.Scores(30 + 3 * k, 0.9, math.inf)
        table.rows[f"{k}.png"] = {"rainy": rainy, "derained": derained}
        write_image(tmp_path / f"{k}.png", photo(20, 30, k))
    pictures = {f"{k}.png": {"rainy": tmp_path / f"{k}.png"} for k in range(2)}
    table.page(tmp_path / "r.html", "t", pictures, ("rainy", "rainy"), {})
    text = (tmp_path / "r.html").read_text()
    rows = [re.findall(r">([^<>]*)</td>", row) for row in re.findall("<tr><td.*?</tr>", text)]
    assert rows[0][-6:] == ["20.00", "0.5000", "21.00", "30.00", "0.9000", "\N{INFINITY}"]
    assert rows[2][-6:] == ["20.50", "0.5000", "21.00", "31.50", "0.9000", "n/a"]  # the means
    assert "by derained PSNR-Y" in text
    caption = re.search("(?s)<figcaption>.*?</figcaption>", text)[0]
    assert " ".join(re.sub("<[^>]*>", " ", caption).split()) == (
        "0.png PSNR-Y SSIM-Y PSNR-RGB rainy 20.00 0.5000 21.00 derained 30.00 0.9000 \N{INFINITY}"
    )


@needs_chromium
def test_in_a_browser_of_400_px(written):
    """The slider moves and shows what it should, sides can be chosen, the table sorts, nothing sticks out."""
    answer, console = ask(
        written,
        """
        const names = () => [...document.querySelectorAll('tbody tr')].map(row => row.cells[0].dataset.value).join('');
        const found = {start: names(), sorted: []};
        const heads = document.querySelectorAll('th button');
        for (const [head, times] of [[1, 1], [1, 1], [2, 1], [0, 1]]) {
          heads[head].click();
          found.sorted.push(names());
        }
        const figure = document.querySelector('figure'), slider = figure.querySelector('input');
        figure.scrollIntoView();
        const box = figure.querySelector('.view').getBoundingClientRect();
        const at = share => box.left + share * box.width;
        found.hit = document.elementFromPoint(at(.3), box.top + 20) === slider;
        const left = figure.querySelector('.left'), shown = () => getComputedStyle(left).clipPath;
        found.clip = [shown()];
        slider.value = 20;
        slider.dispatchEvent(new Event('input'));
        found.clip.push(shown());
        found.handle = Math.round(figure.querySelector('i').getBoundingClientRect().left - at(.2));
        const choice = figure.querySelector('select[name=right]');
        choice.selectedIndex = 0;
        choice.dispatchEvent(new Event('change'));
        found.both = [...figure.querySelectorAll('img')].map(image => image.className);
        found.loaded = [...document.images].every(image => image.naturalWidth === 90);
        found.width = [innerWidth, document.documentElement.scrollWidth];
        return found;
        """,
        width=400,
    )
    assert console == []
    assert answer["start"] == "01234"
    assert answer["sorted"] == ["10423", "24013", "43210", "01234"]
    assert answer["hit"] and answer["clip"] == ["inset(0px 50% 0px 0px)", "inset(0px 80% 0px 0px)"]
    assert abs(answer["handle"]) <= 2 and answer["both"] == ["left right", ""] and answer["loaded"]
    assert answer["width"][0] == 400 and answer["width"][1] <= 400


@needs_chromium
@pytest.mark.parametrize("width, across", [(400, 1), (1280, 2), (1920, 3)])
def test_pictures_fill_the_page(tmp_path, width, across):
    """As many side by side as have room in full size, choices at their edges, tall ones as long as wide ones."""
    shapes = [(320, 480), (480, 320), (320, 480), (320, 480)]
    for k, shape in enumerate(shapes):
        write_image(tmp_path / f"{k}.png", photo(*shape, k))
    some = [page.Item(f"{k}.png", {"a": tmp_path / f"{k}.png"}, {"a PSNR": 1.0 * k, "a SSIM": 0.5}) for k in range(4)]
    page.write(tmp_path / page.NAME, "t", [], some, ("a", "a"), None, "a PSNR")
    answer, console = ask(
        tmp_path / page.NAME,
        """
        const box = element => element.getBoundingClientRect(), all = name => [...document.querySelectorAll(name)];
        const room = box(document.querySelector('.figures'));
        const views = all('.view').map(box), last = all('select[name=right]').map(box);
        return {
          across: views.filter(view => view.top === views[0].top || view.bottom === views[0].bottom).length,
          filled: (views[0].width * Math.round(room.width / views[0].width)) / room.width,
          edges: Math.max(...views.map((view, k) => Math.abs(view.right - last[k].right))),
          longer: views.map(view => Math.max(view.width, view.height)),
          shape: views[1].width / views[1].height,
          out: document.documentElement.scrollWidth - innerWidth,
        };
        """,
        width,
    )
    assert console == [] and answer["out"] <= 0 and answer["edges"] < 2
    assert answer["across"] == across and answer["filled"] > 0.93 and answer["shape"] == pytest.approx(2 / 3, abs=0.01)
    assert max(answer["longer"]) - min(answer["longer"]) < 0.05 * max(answer["longer"])
