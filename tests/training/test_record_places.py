"""What another program reads as a picture is never trained on as text, and innocent text is never refused."""

from __future__ import annotations

import time

import pytest
from test_record_keys import GOOD, TEXT, reasons, turns

from ppe_npu.training.record_forms import FORMS, find_place
from ppe_npu.training.record_places import check_unseen

# Marks that stand for a picture in other programs' texts, whatever else the record has.
PLACES = [
    "<image_2>", "<image 2>", "<image2>", "<|image|>", "<|image_2|>", "<ImageHere>", "<IMAGE>", "<Video>", "<|video|>",
    "<VideoHere>", "<start_of_image>", "<|begin_of_video|>", "<image_soft_token>", "<|image_sep|>", "<image_tokens>",
    "<IMG_CONTEXT>", "<|img|>", "<img2>",
    "<__media__>", "<__image__>", "<##IMAGE##>", "<|media_pad|>", "<image-placeholder>", "<vila/video>", "<im_patch>",
    "<im_start>", "<vid_end>", "<fake_token_around_image>", "<global-img>", "[IMG]", "[IMG_BREAK]", "[<IMG_PLH>]",
    "[VIDEO 2]", "[img-2]", "<img>a/b.png</img>", "<img></img>", "<img>", "<IMG>", "<Img/>", "<vid>", "<pic>",
    "<picture>", "<photo>", "<PHOTO>", "<frame>", "<figure>", "<screenshot>", "<images>", "<img\n src='b.png'",
    '<img src="b.png"', "<IMG SRC=b.JPG", '<img width="9" alt="a > b" src="x/b.png?v=1', '<img src="https://',
    '<img src=\\"b.png', '<img src="data:', "<video controls><source src='b.mp4", "<image: b.png", "<embed src=b.gif",
    "![](b.png", "![a cat](x/b c.png", "![a](https://", "![a](data:", "![a](attachment:",
    "![a cat][1] here\n\n[1]: b.png", "![[b.png]]",
    "[img]https://x.y/b[/img]", "[IMG width=9]b.png[/IMG]", "{image}", "{{image}}", "{{ img }}", "{image_2}", "<图片>",
    "[图片]", "<图2>", "data:image/png;base64,", "{IMAGE_PLACEHOLDER}",
    "See: data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA", "iVBORw0KGgoAAAANSUhEUgAAAAkAAAAJ",
]  # fmt: skip
# Marks that stand for a picture only if the record has none.
ALONE = [
    "photos/cat.jpg", "/home/me/cat.PNG", "C:\\pics\\cat.webp", "https://x.y/a.png?size=9", "a.mp4", "./a.gif",
    "Image: a/cat.jpg", "image 1: https://x.y/cat.jpg", "@a.png", "<https://x.y/a.png>",
    "猫.jpg", "照片/小猫在睡觉的样子.jpg", "[image]",
    "[Photo 2]", "[image_1]", "[Image-2]", "[image: cat.png]", "Image path: a/cat.jpg", "video_url: https://x.y/a.mp4",
]  # fmt: skip
BOX = "<ref>the cat</ref><box>(1,2),(3,4)</box> <|object_ref_start|>it<|object_ref_end|><|box_start|>(1,2)<|box_end|>"
INNOCENT = [
    "What does <b> do in HTML, and <br/>, <a href='photo.png'>this</a>, <p class=image>?", "1 < image > 2 and x<y>z",
    "Is a < b and c > d?", "open photo.jpg in GIMP", "Convert a.jpg to b.png", "What is in photo.jpg?",
    "Rename cat.jpg",
    "Save it as cat.jpg.", "My file is called\ncat.txt\nand not\ncat.jpg", "$ ls\na.png\nb.py\nc.jpg", "See [a](b.png)",
    "[image](https://x.y/z) [Video](z.mp4) [1]", "[![](", "a![b]",
    "vec![image][0]", "[!a]![APap][Mm]", "frames[video] + x[IMG] - t[image]",
    "plot([image])", "a = [image]", '{"image": "a.png", "n": 1}', '[\n  "a.png",\n  "b.png"\n]', "{'img': image}",
    r"\includegraphics[width=3cm]{image} \begin{frame} \begin{picture}", "$\\{x < 3 \\mid x > image\\}$", "{imagine}",
    "src={image} ${image} f'{image}' \"{image}\"", "import {image} from './x'", "`<img>` and `<picture>` in HTML",
    "```html\n<img src='a.png'>\n```\nWhat is wrong?", "```\n![a](b.png)\nphotos/cat.jpg\n", "Use `![alt](path.png)`.",
    "In Markdown, ![alt](url) is a picture", "<imagery> <images/list> <imagine> <image_id> <video_url> <frames:3>", BOX,
    "<svg><rect/></svg> <canvas> <audio>", "<video src='a'> <img src='b'> <img alt=x>",
    "std::vector<Image> v; List<Frame3D>",
    "vector<image_t> Option<Image<T>>", "<think>so</think> <tool_call>x</tool_call> <|user|>", "😀 a cat 🐈 <3 >:-)",
    "Frame1: a cat; Image 2 and Figure 3; see Picture (4)", "*.png", "rm -f *.jpg", "convert a.png b.jpg",
    "cat > a.png",
    "background: url(a.png);", "a { background: url(data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA); }",
    "x = 'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA'",
    "// see a.png", "--output=a.png", "open('a.png')", "src/index.ts", "main.py", "x.py:3",
    "请用画图软件打开照片.jpg", "把它存成猫.jpg。", "An image: a cat.", "image: nginx:latest", "GET /image/<id>/<name>",
    "@app.route('/img/<image_name>')", "SELECT * FROM image WHERE id > 3;", "<s> [INST] hi [/INST] <pad> <unk> <mask>",
    "iVBORw0KGgo is how base64 of a PNG begins", "data:image/png is a type", "``a'' <em>and</em> `b'",
    "<xs:image type='a'>",
    "![built](https://x.y/a.svg?branch=main)", "<frame src='http://x.y/top.html'>", "<Photo/> <Frame> <Media />",
    "Why is <img> left of its <div>?", "<html><body><img src='a.png'></body></html>",
    "<!DOCTYPE html>\n<img src=a.png>",
    "import Image from 'next/image'\n<Image src='/a.png' />", "return { image };", "import { Image } from 'x'",
    "use a::{Image, Frame}", "GET /images/{image}", "query { user { photo } }", "if (x) { frame }", "<p>{image}</p>",
    "``<img>`` and ``a ` <img>``", "![[a note]]", "<svg><image href='a.png'/></svg>", "@app.get('/photo/<photo>')",
    "<rss><media:content url='https://x.y/a.png'/></rss>",
    "#include <image.h>\n#include <opencv2/video.hpp>", "The <title> of <http://x.y/a>", "https://x.y/a.html", "a.b.c",
]  # fmt: skip
NOTES = [
    {"label": 3}, {"label": "cat"}, {"label": True}, {"label": None}, {"duration": 12.0}, {"width": 3, "height": 4},
    {"source": "coco"}, {"score": 0.5}, {"loss": 1.8}, {"weight": "3 kg"}, {"train": False}, {"mask": "User"},
    {"timestamps": [1, 2]}, {"frame_rate": 30}, {"frame_count": 99}, {"objects": [{"name": "cat"}]}, {"kto_tag": None},
    {"meta": {"duration": 3, "token": {"<s0>": 1}}}, {"tags": ["<b>"]}, {"path": "src/index.ts"}, {"sys": ""},
    {"loss_weight": 1}, {"bbox": [1, 2, 3, 4]}, {"split": "train"}, {"systematic": "x"}, {"developers": 3},
    {"image_max_pixels": None}, {"fps": 0}, {"start": None}, {"end": []}, {"ignore": True},
    {"train_on_inputs": 0},
]  # fmt: skip


@pytest.fixture(autouse=True)
def picture(write_image):
    write_image("a.png")


def asked(texts, before=""):
    """Records that ask each text, alone and inside another text."""
    said = [f"{before}{text}" for text in texts] + [f"{before}What is it?\n{text}\nTell me." for text in texts]
    return [({**GOOD} if before else {}) | {"conversations": turns(text, "3")} for text in said]


@pytest.mark.parametrize("own", ["", "<image>\n"], ids=["alone", "beside a picture"])
def test_what_stands_for_a_picture_is_named_and_may_be_meant_literally(tmp_path, own):
    places = PLACES if own else [*PLACES, *ALONE]
    records = asked(places, own)
    for place, reason in zip(places * 2, reasons(tmp_path, *records)):
        assert reason.startswith("a text in it has "), place
        assert "for which the model would see nothing" in reason, place
        assert reason.endswith("give the record 'literal': true"), place
    assert not any(reasons(tmp_path, *(record | {"literal": True} for record in records)))


@pytest.mark.parametrize("own", ["", "<image>\n"], ids=["alone", "beside a picture"])
def test_innocent_text_is_not_refused(tmp_path, own):
    texts = [*INNOCENT, *ALONE] if own else INNOCENT
    found = reasons(tmp_path, *asked(texts, own))
    assert [pair for pair in zip(texts * 2, found) if pair[1]] == []


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.example)
def test_every_form_is_found_by_its_own_row_alone(form):
    """No row is redundant, and each one counts exactly where its flags say."""
    assert [row.example for row in FORMS[: FORMS.index(form) + 1] if any(row.places(form.example))] == [form.example]
    assert find_place(form.example, own=0) in form.example
    assert (find_place(form.example, own=1) is None) is form.alone
    assert (find_place(f"```\n{form.example}\n```", own=0) is None) is not form.code
    if form.unless:
        innocent = next(text for text in ("<svg>", "<table>", "b.py") if form.unless.search(text))
        assert find_place(f"{form.example}\n{innocent}", own=0) is None


@pytest.mark.parametrize("unit", ["a.png?", "https://a.png?", "![a][", "<img ", "{{image", "[img](", "<image>"])
def test_the_time_grows_no_faster_than_a_text(unit):
    start, text = time.process_time(), unit * (100_000 // len(unit)) + " x"
    assert find_place(text, own=0) is None
    check_unseen({"conversations": [], "note": f"http://{text}"})
    assert time.process_time() - start < 2, "most take a hundredth of it; the square of the length takes more"


@pytest.mark.parametrize("form", ["<image {}>", "<image_{}>", "<|image_{}|>", "[IMG {}]", "<Picture {}>", "<图{}>"])
def test_the_number_of_a_picture_that_a_record_has_is_text(tmp_path, form):
    """Questions of MathVision and MMMU refer to their pictures like this, even after an <image>."""
    two = {"image": ["a.png", "a.png"]}
    texts = [f"<image><image>\nIs {form.format(number)} a cat?" for number in (1, 2, 3)]
    *known, further = reasons(tmp_path, *(two | {"conversations": turns(text, "3")} for text in texts))
    assert not any(known)
    assert f"has {form.format(3)!r}, for which the model would see nothing" in further


def test_what_the_model_says_and_a_tag_around_a_picture_of_ours_are_text(tmp_path):
    answers = [{"conversations": turns("What?", text)} for text in (*PLACES, *ALONE)]
    wrapped = ["<Image><image></Image> what?", "<img>\n<image>\n</img> what?", "(image 1: <Image><image></Image>)"]
    assert not any(reasons(tmp_path, *answers, *({**GOOD, "conversations": turns(text, "3")} for text in wrapped)))


def test_innocent_notes_are_not_refused(tmp_path, write_clip):
    write_clip("a.mp4")
    clip = {"video": "a.mp4", "conversations": turns("<video>", "ring")}
    records = [record | note for note in NOTES for record in (TEXT, GOOD, clip)]
    assert [pair for pair in zip(records, reasons(tmp_path, *records)) if pair[1]] == []


def test_parts_and_frames_that_are_asked_of_a_video_are_not_passed_over(tmp_path, write_clip):
    """Of a record with a picture, only keys of its size are named; without media, all of them are notes."""
    write_clip("a.mp4")
    clip = {"video": "a.mp4", "conversations": turns("<video>", "ring")}
    of_both = ("min_pixels", "max_pixels", "resized_height")
    keys = [
        "start",
        "end",
        "start_time",
        "endTime",
        "video_start",
        "clip_end",
        "fps",
        "nframes",
        "num_frames",
        *of_both,
    ]
    for key in keys:
        of_clip, of_picture, of_text = reasons(tmp_path, clip | {key: 2.5}, GOOD | {key: 2.5}, TEXT | {key: 2.5})
        assert of_clip.startswith(f"its key {key!r} is not read: --fps, --nframes and --max-pixels apply to all")
        assert of_picture.startswith(f"its key {key!r} is not read: --min-pixels") is (key in of_both)
        assert of_text == ""


def test_what_a_video_s_file_has_is_a_note(tmp_path, write_clip):
    """The rate, frame count and full duration of the file are notes; a part of it or a rate to sample at is refused."""
    write_clip("a.mp4")
    clip = {"video": "a.mp4", "conversations": turns("<video>", "ring")}
    notes = [{"fps": 29.97, "num_frames": 300, "duration": 10.0}, {"frame_rate": 25, "nframes": 9}, {"raw_fps": 30},
             {"start": 0.0, "end": 12.5, "duration": 12.5}]  # fmt: skip
    asked = [{"fps": 2, "num_frames": 300}, {"num_frames": 300}, {"start": 3, "end": 9, "duration": 9}, {"end": 9},
             {"fps": 30, "end": 9, "duration": 12}, {"fps": 30, "max_frames": 8}]  # fmt: skip
    found = reasons(tmp_path, *(clip | said for said in (*notes, *asked)))
    assert not any(found[: len(notes)])
    assert all("--fps, --nframes and --max-pixels apply to all videos" in reason for reason in found[len(notes) :])


def test_keys_that_change_what_is_learnt_are_not_passed_over(tmp_path):
    changing = [
        {"kto_tag": True}, {"kto_tag": False}, {"label": False}, {"desirable": False}, {"rejected_images": ["b"]},
        {"sys": "Be brief"}, {"sysPrompt": "Be brief"}, {"developer": "Be brief"}, {"loss_weight": 0.5},
        {"lossScale": 0}, {"trainable": False}, {"train_on_inputs": True}, {"is_masked": True},
    ]  # fmt: skip
    for change, reason in zip(changing, reasons(tmp_path, *(TEXT | change for change in changing))):
        assert reason.startswith(f"its key {next(iter(change))!r} is not read: "), change


def test_a_turn_that_another_program_would_not_train_on_is_not_trained_on(tmp_path):
    weights = [
        {"train_on_turn": False}, {"trainable": 0}, {"is_masked": True}, {"loss_scale": 0.0}, {"masked": 1},
        {"lossScale": "ignore_empty_think"}, {"training": False}, {"ignore": True}, {"mask": True}, {"mask": 0},
        {"train_detail": [{"begin_offset": 0, "train": False}]}, {"weight": 2}, {"loss": "false"},
    ]  # fmt: skip
    whole = [
        {"train_on_turn": True}, {"trainable": 1}, {"is_masked": False}, {"loss_scale": 1.0}, {"masked": 0},
        {"train_on_input": False}, {"loss": None}, {"weight": 1}, {"mask": None}, {"train_detail": []},
    ]  # fmt: skip
    human, gpt = turns("row", "3")
    said = [{"conversations": [human, gpt | weight]} for weight in [*weights, *whole]]
    found = reasons(tmp_path, *said)
    for weight, reason in zip(weights, found):
        assert reason.startswith(f"a turn's key {next(iter(weight))!r} is not read: leave it out"), weight
    assert not any(found[len(weights) :])
    free = [{"loss": False}, {"weight": 0}, {"is_masked": True}, {"train_on_turn": True}, {"mask": 1}]
    assert not any(reasons(tmp_path, *({"conversations": [human | weight, gpt]} for weight in free)))
    (reason,) = reasons(tmp_path, {"conversations": [human | {"train_on_input": True}, gpt]})
    assert "'train_on_input' is not read" in reason


def test_marks_that_a_note_says_the_meaning_of_are_not_learnt(tmp_path):
    """VTimeLLM's time marks, and ms-swift's box and name marks."""
    times = {"meta": {"duration": 9, "token": {"<s0>": 0, "<e0>": 3.5}}}
    boxes = {"objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}}
    said = [(times, "From <s0> on"), (boxes, "<bbox>"), (boxes, "<ref-object> is here")]
    for (note, text), reason in zip(
        said, reasons(tmp_path, *(note | {"conversations": turns("Where?", t)} for note, t in said))
    ):
        assert reason.startswith(f"its key {next(iter(note))!r} says what '<"), text
        assert reason.endswith("stands for, but is not read: write the meaning itself into the texts")
    assert not any(reasons(tmp_path, TEXT | times, TEXT | boxes, {"conversations": turns("<s0>?", "<bbox>")}))
