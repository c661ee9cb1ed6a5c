"""The page of `ppe-npu explore`. Each visitor has a Session; all share an Explorer, which serves one call at a time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ppe_npu.errors import InputError, UserError
from ppe_npu.evaluation.generation import Generated
from ppe_npu.explorer import sources, words
from ppe_npu.explorer.groups import Explorer, Look
from ppe_npu.explorer.session import COLUMNS, Session
from ppe_npu.explorer.state import NONE, YOURS, Settings, choices
from ppe_npu.inspect.show import token_at
from ppe_npu.utils.escape import printable

_KEPT = 3600  # seconds that a visitor's session and pictures are kept


def build(explorer: Explorer, about: str) -> Any:
    """The page, as a gradio.Blocks.

    Args:
        about: a line about the model.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
    from ppe_npu.utils.optional import optional

    gr = optional("gradio", "ppe-npu explore", "ppe-npu[app]")
    with gr.Blocks(
        title="ppe_npu explorer", analytics_enabled=False, fill_width=True, delete_cache=(_KEPT, _KEPT)
    ) as page:
        Page(gr, explorer, about, page)
    return page


class Page:
    """The components of the page and their event handlers. A handler returns a new value for each part of `shown`."""

    def __init__(self, gr: Any, explorer: Explorer, about: str, blocks: Any):
        self.gr, self.explorer = gr, explorer
        gr.Markdown(f"# What compression does\n{about} Click a token of a picture to see what became of it.")
        self.session = gr.State(Session(), time_to_live=_KEPT)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self._ask_what()
            with gr.Column(scale=5):
                self.message = gr.Markdown("", elem_id="message", container=False)
                self._show()
        self.settings = [
            self.source,
            self.question,
            self.left,
            self.right,
            self.budget,
            self.positions,
            self.k,
            self.place,
        ]
        drawn = [*self.titles, *self.pictures, *self.tokens, *self.answers]
        taken = [self.costs, self.files, self.code, self.link]
        self.shown = [self.session, self.message, *self.settings, *drawn, *taken]
        self._connect(blocks)

    def _ask_what(self) -> None:
        gr = self.gr
        with gr.Group():
            self.source = gr.Dropdown([*sources.names(), YOURS], value="house", label="Picture or video")
            self.upload = gr.File(label="Upload a picture or a video", type="filepath", height=150)
            self.question = gr.Textbox("shape red", label="Question", max_lines=3)
        with gr.Group():
            self.budget = gr.Slider(0.02, 1, 0.25, step=0.01, label="Budget: fraction of the tokens to keep")
            more = "a method, NAME:key=value,key=value, or several joined by +"
            self.left = gr.Dropdown(choices(), value="ppe", label="Left: method", info=more, allow_custom_value=True)
            self.right = gr.Dropdown(
                [NONE, *choices()], value=NONE, label="Right: another method", allow_custom_value=True
            )
            self.positions = gr.Radio(
                ["ppe", "keep_one", "renumber"],
                value="ppe",
                label="Positions of merged tokens",
                info="presets (ppe, keep_one, chatunivi) set their own",
            )
            self.k = gr.Slider(0, 16, 4, step=1, label="K: positions per merged token (0: the default)")
        self.place = gr.Number(0, precision=0, minimum=0, label="Selected token, by number")

    def _show(self) -> None:
        gr = self.gr
        self.titles, self.columns, self.pictures, self.tokens, self.answers = [], [], [], [], []
        with gr.Row(equal_height=False):
            for name in COLUMNS:
                with gr.Column(visible=name != "right", min_width=220) as column:
                    self.titles.append(gr.Markdown(f"### {name}"))
                    self.pictures.append(
                        gr.Image(
                            label=name,
                            format="png",
                            interactive=False,
                            buttons=["fullscreen"],
                            elem_id=f"picture-{name}",
                            alt_text=name,
                            show_label=False,
                        )
                    )
                    self.tokens.append(gr.Markdown("", elem_id=f"token-{name}"))
                    self.answers.append(
                        gr.Textbox(
                            "",
                            label=f"{name}: answer",
                            interactive=False,
                            lines=2,
                            elem_id=f"answer-{name}",
                            visible=self.explorer.answers,
                        )
                    )
                self.columns.append(column)
        self.ask = gr.Button("Ask all columns", variant="primary", visible=self.explorer.answers, elem_id="ask")
        self.costs = gr.HTML("", elem_id="costs", label="Costs")
        with gr.Accordion("Export these settings", open=False):
            self.files = gr.HTML("", elem_id="files", label="Files")
            self.code = gr.Code("", language="python", label="Three lines of Python", interactive=False)
        self.link = gr.Textbox("", label="Link to this view", interactive=False, elem_id="link")

    def _connect(self, blocks: Any) -> None:
        # The link may arrive as a query alone, or unchanged as a whole address: only its query is used.
        gr, addressed = self.gr, '(q) => {const u = location.origin + location.pathname + q.replace(/^[^?]*/, ""); '
        addressed += 'history.replaceState(null, "", u); return u}'
        own = [self.session, *self.settings]
        moved = [part.input for part in (self.source, self.left, self.right, self.budget, self.positions, self.k)]
        moved += [self.question.submit, self.question.blur, self.place.submit, self.place.blur]

        def restored(request: Any) -> list[Any]:
            return self.restored(request)

        def picked(event: Any, *values: Any) -> list[Any]:
            return self.picked(event, *values)

        # Gradio passes these objects to functions with such annotations. They are set here, because the classes belong
        # to an optional package.
        restored.__annotations__, picked.__annotations__ = {"request": gr.Request}, {"event": gr.SelectData}
        shown = self.shown + self.columns[2:]
        many = {"concurrency_limit": 16}  # handlers may run concurrently: Explorer locks the model
        asking = self.ask.click(
            self.asked,
            self.session,
            [self.session, self.message, *self.answers, self.costs],
            show_progress="hidden",
            **many,
        )
        quiet = {"show_progress": "hidden", "cancels": [asking], **many}
        events = [
            gr.on(moved, self.changed, own, shown, trigger_mode="always_last", **quiet),
            self.upload.upload(self.opened, [self.upload, *own], shown, cancels=[asking], **many),
            blocks.load(restored, None, shown, **many),
            *(picture.select(picked, own, shown, **quiet) for picture in self.pictures),
        ]
        for event in events:
            event.then(None, self.link, self.link, js=addressed)

    # -- what happens ------------------------------------------------------------------------------------------------

    def changed(self, session: Session, *values: Any) -> list[Any]:
        """A setting was changed."""
        return self._tried(session, lambda: _settings(values), ())

    def opened(self, path: str | None, session: Session, *values: Any) -> list[Any]:
        """A file was uploaded."""

        def read() -> Settings:
            session.upload(self.explorer, str(path))
            return _settings((YOURS, *values[1:-1], 0))

        return self._tried(session, read, ("source", "place"))

    def restored(self, request: Any) -> list[Any]:
        """The page was opened, perhaps from a link with settings; if they are invalid, the defaults are shown."""
        session, said = Session(), ""
        try:
            session.update(self.explorer, Settings.of_query(dict(request.query_params)))
        except UserError as error:
            said = _line(error)
            try:
                session.update(self.explorer, Settings())
            except UserError as still:
                return [session, _line(still), *self._left()]
        return self._all(session, said, [one.name for one in dataclasses.fields(Settings)])

    def picked(self, event: Any, session: Session, *values: Any) -> list[Any]:
        """A picture was clicked."""

        def at() -> Settings:
            if not session.looks:  # the session has expired: start again from the page's settings
                return _settings(values)
            shape = session.looks["dense"].groups.labels.shape
            place = token_at(tuple(event.index), shape, *session.drawn)
            settings = _settings(values)
            return settings if place is None else dataclasses.replace(settings, place=place)

        return self._tried(session, at, ("place",))

    def asked(self, session: Session) -> Iterator[list[Any]]:
        """Stream the answers of all columns, one after the other."""
        said = dict.fromkeys(COLUMNS, "")
        try:
            configs, prompt = dict(session.configs), session.prompt()
            for name, config in configs.items():
                for piece in self.explorer.ask(prompt, config):
                    if isinstance(piece, Generated) and session.configs.get(name) == config:
                        session.done[name] = piece
                    elif isinstance(piece, str):
                        said[name] += printable(piece, keep="\n\t")
                    costs = words.table(_columns(session))
                    yield [session, "", *said.values(), costs]
        except UserError as error:
            yield [session, _line(error), *said.values(), self.gr.skip()]

    def _tried(self, session: Session, settings: Any, moved: Sequence[str]) -> list[Any]:
        """Show the result of these settings, or only an error line if they are invalid.

        Args:
            moved: the settings whose components get new values. The user may be typing in the others.
        """
        try:
            session.update(self.explorer, settings())
        except UserError as error:
            return [session, _line(error), *self._left()]
        return self._all(session, "", moved)

    def _left(self) -> list[Any]:
        """Updates that leave everything but the session and the message unchanged."""
        return [self.gr.skip()] * len(self.shown[2:] + self.columns[2:])

    def _all(self, session: Session, message: str, moved: Sequence[str]) -> list[Any]:
        gr, settings = self.gr, session.settings
        titles, drawn, told, answers = [], [], [], []
        for name in COLUMNS:
            look = session.looks.get(name)
            title = name if name == "dense" else f"{name}: {getattr(settings, name)}"
            there = look is not None
            titles.append(f"### {_plain(title)}")
            drawn.append(
                gr.update(value=session.picture(name), alt_text=words.alternative(title, look))
                if there
                else gr.update(value=None)
            )
            told.append(words.told(look, settings.place) if there else "")
            answers.append(gr.skip() if name in session.done else "")
        names = [one.name for one in dataclasses.fields(settings)]
        settings = [getattr(settings, name) if name in moved else gr.skip() for name in names]
        configs = {name: config for name, config in session.configs.items() if name != "dense"}
        note = _budgets(session)
        parts = [words.table(_columns(session)), words.taken_along(configs), words.python_of(configs)]
        shown = [
            session,
            message or note,
            *settings,
            *titles,
            *drawn,
            *told,
            *answers,
            *parts,
            f"?{session.settings.query()}",
        ]
        return [*shown, gr.update(visible="right" in session.looks)]


def _settings(values: Any) -> Settings:
    source, question, left, right, budget, positions, k, place = values
    number = 0 if place is None else int(place)
    return Settings(source, question, str(left), str(right or NONE), float(budget or 0), positions, int(k or 0), number)


def _columns(session: Session) -> list[tuple[str, Look, Generated | None]]:
    titles = {name: name if name == "dense" else getattr(session.settings, name) for name in COLUMNS}
    return [(titles[name], look, session.done.get(name)) for name, look in session.looks.items()]


def _budgets(session: Session) -> str:
    """How long the update took, and which columns ignore the budget."""
    fixed = [name for name in COLUMNS[1:] if name in session.looks and not session.settings.moved_by_budget(name)]
    note = f" The budget does not apply to {' and '.join(fixed)}, which set their own number of tokens."
    return f"Made in {session.seconds:.2f} s.{note if fixed else ''}"


def _line(error: UserError) -> str:
    """An error as Markdown."""
    return f"**Error:** {_plain(str(error))}"


def _plain(text: str) -> str:
    """The text in one line, with every character that Markdown could take for markup escaped."""
    text = printable(" ".join(text.split()))
    return "".join(f"&#{ord(sign)};" if sign in "\\`*_{}[]()<>#+-.!|~&$" else sign for sign in text)


def serve(explorer: Explorer, about: str, host: str, port: int | None) -> tuple[Any, str]:
    """Start the page and return (its Blocks, its address). It runs in the background until the caller closes it.

    Raises:
        InputError: Gradio is not installed, or the address is taken.
    """
    page = build(explorer, about)
    import gradio as gr
    from starlette.middleware import Middleware

    from ppe_npu.explorer.policy import OwnHostOnly

    own = ("localhost", host.strip("[]"))  # Gradio checks that the page is up at these, which no proxy may intercept
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = others if others == "*" else ",".join(filter(None, (others, *own)))
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.queue().launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            show_error=False,
            ssr_mode=False,
            footer_links=[],
            max_file_size="512mb",
            theme=theme,
            css=_STYLE,
            app_kwargs={"middleware": [Middleware(OwnHostOnly)]},
        )
    except OSError as error:
        raise InputError(f"the page cannot be served at {host} ({error}): name another --port") from error
    return page, address


_STYLE = """
table.costs { width: 100%; border-collapse: collapse; }
table.costs caption { text-align: left; font-weight: 600; padding: .3em 0; }
table.costs th, table.costs td { padding: .25em .6em; text-align: right; border-bottom: 1px solid #8884; }
table.costs th[scope=row], table.costs thead th:first-child { text-align: left; font-weight: 400; }
a.save { text-decoration: underline; }
#picture-dense img, #picture-left img, #picture-right img { cursor: crosshair; }
"""
