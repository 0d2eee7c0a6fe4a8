"""The page: what is on it, and what happens when it is used."""

import asyncio
import shutil
import traceback
from concurrent.futures import CancelledError
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from .. import samples
from ..errors import RestoreError
from ..page import image_uri
from ..sheet import cover
from . import cards
from .engine import Cancelled, Job, Queue, label

BY_DEPTH, BY_TIME = "Depth", "Time limit"
TESTS = {"None": None, "Noise": "noise", "JPEG": "jpeg", "Rain": "rain", "Haze": "haze"}
_EVERY = 0.25                                # seconds between two looks at the progress
_THUMBNAIL = (72, 96)
_TITLE = "<h1>AnyDepth</h1><p>Removes noise, rain, haze and JPEG artefacts from photos.</p>"
_LOCAL = "Photos are processed on this computer and deleted when the page is closed."
_REMOTE = "Photos go to the computer that this page comes from, and are deleted there when the page is closed."


class Choice(NamedTuple):
    """What the user chose: ``depth`` counts the model's depths from 1, ``limit`` is in seconds; ``mode`` says which holds."""

    model: str
    mode: str
    depth: int
    limit: float


class Page:
    """The components of the page, and one method for each event; what everybody shares comes in."""

    def __init__(self, workspace, engine, local):
        self.workspace, self.engine, self.local = workspace, engine, local
        self.reader = Queue()                # reading and spoiling a photo does not wait for another's restoring
        self.measuring = {}                  # model -> the job that times it
        self.samples = [(name, image_uri(cover(samples.photo(name), _THUMBNAIL), quality=80)) for name in samples.PHOTOS]
        with gr.Blocks(title="AnyDepth", analytics_enabled=False, fill_width=True) as self.blocks:
            self._build()
            self._connect()
        self.blocks.queue(default_concurrency_limit=None, api_open=False)

    def _build(self):
        model = self.engine.models[0]
        depths = self.engine.depths(model)
        take = "element.addEventListener('photo', event => trigger('upload', event.detail));"
        gr.HTML(f"{_TITLE}<p class='hint'>{_LOCAL if self.local else _REMOTE}</p>", elem_id="head")
        with gr.Row(elem_id="main"):
            with gr.Column(scale=5, min_width=320, elem_id="left"):
                self.drop = gr.HTML(cards.drop_zone(self.workspace.limits, self.samples), js_on_load=take, elem_id="drop")
                self.viewer = gr.HTML(visible=False, elem_id="viewer")
                with gr.Row(visible=False, elem_id="actions") as self.actions:
                    self.restore = gr.Button("Restore", variant="primary", elem_id="restore")
                    self.cancel = gr.Button("Cancel", visible=False, elem_id="cancel")
                self.status = gr.HTML(elem_id="status")
            with gr.Column(scale=2, min_width=300, visible=False, elem_id="right") as self.right:
                self.again = gr.HTML(cards.drop_zone(self.workspace.limits, again=True), js_on_load=take, elem_id="again")
                self.facts = gr.HTML(elem_id="facts")
                with gr.Group(elem_id="depths"):
                    self.model = gr.Dropdown([(label(name), name) for name in self.engine.models], value=model, label="Model",
                                             visible=len(self.engine.models) > 1, elem_id="model")
                    self.mode = gr.Radio([BY_DEPTH, BY_TIME], value=BY_DEPTH, label="Choose by", elem_id="mode",
                                         visible=len(depths) > 1)
                    self.depth = gr.Slider(**self._slider(model), elem_id="depth")
                    self.limit = gr.Number(10, label="Seconds for this photo at most", minimum=0.1, step=1, visible=False,
                                           elem_id="limit")
                    self.costs = gr.HTML(elem_id="costs")
                with gr.Accordion("Test it on a clean photo", open=False, elem_id="test"):
                    gr.HTML("<p class='hint'>Spoil this photo, restore it, and see how near the result comes to the original.</p>")
                    self.kind = gr.Radio(list(TESTS), value="None", label="Spoil it with", elem_id="kind")
                    self.sigma = gr.Slider(5, 75, 25, step=1, label="Strength (sigma)", visible=False, elem_id="sigma")
                    self.quality = gr.Slider(5, 80, 20, step=1, label="JPEG quality", visible=False, elem_id="quality")
                    self.rain = gr.Radio(_titled("light", "heavy", "natural"), value="light", label="Rain", visible=False, elem_id="rain")
                    self.beta = gr.Slider(0.3, 3, 1.2, step=0.1, label="Thickness of the haze", visible=False, elem_id="beta")
                    self.haze = gr.Radio(_titled("outdoor", "indoor"), value="outdoor", label="Scene", visible=False, elem_id="haze")
                    self.seed = gr.Number(0, label="Seed", info="Another seed, another pattern.", precision=0, minimum=0,
                                          maximum=2**31, visible=False, elem_id="seed")
                self.command = gr.HTML(elem_id="command")

    def _connect(self):
        choice = [self.model, self.mode, self.depth, self.limit]
        test = [self.kind, self.sigma, self.quality, self.rain, self.beta, self.haze, self.seed]
        everything = [self.drop, self.again, self.viewer, self.actions, self.restore, self.cancel, self.status, self.right,
                      self.facts, self.model, self.mode, self.depth, self.limit, self.costs, *test, self.command]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([self.drop.upload, self.again.upload], self.on_photo, choice, everything, trigger_mode="multiple",
              **quiet)         # while one waits for the timing, another photo may come
        self.restore.click(self.on_restore, choice, everything, **quiet)
        self.cancel.click(self.on_cancel, None, None, queue=False, **quiet)
        self.model.input(self.on_model, choice, everything, trigger_mode="multiple", **quiet)
        gr.on([self.mode.input, self.depth.input, self.limit.input], self.on_choice, choice, everything,
              trigger_mode="always_last", **quiet)
        gr.on([self.kind.input, self.sigma.release, self.quality.release, self.rain.input, self.beta.release, self.haze.input,
               self.seed.submit, self.seed.blur], self.on_test, test, everything, trigger_mode="always_last", **quiet)
        self.blocks.load(self.on_open, None, None, **quiet)
        self.blocks.unload(self.on_close)

    # ------------------------------------------------------------ events

    async def on_open(self, request: gr.Request):
        """Time the first network while the user still looks for a photo."""
        self.workspace.session(request.session_hash)
        self._start_measuring(self.engine.models[0])

    def on_close(self, request: gr.Request):
        """Delete what the page has left."""
        self.workspace.end(request.session_hash)

    async def on_photo(self, model, mode, depth, limit, event: gr.EventData, request: gr.Request):
        """Take the uploaded photo, or a sample, in place of the one before."""
        session = self._session(request, Choice(model, mode, depth, limit))
        if session.job is not None:
            session.job.cancel()
        try:
            async with session.lock:
                upload, name = await asyncio.to_thread(self._arrived, event._data, session)
                await self._read(Job(f"Reading {name}"), session.take, upload, name)
        except RestoreError as error:
            first = session.photo is None
            yield {self.drop: cards.drop_zone(self.workspace.limits, self.samples, error=str(error) if first else None),
                   self.again: cards.drop_zone(self.workspace.limits, again=True, error=None if first else str(error))}
            return
        yield {**await self._view(session), self.status: "", **self._settings("None"), self.kind: "None",
               self.drop: gr.HTML(visible=False), self.right: gr.Column(visible=True), self.actions: gr.Row(visible=True),
               self.again: cards.drop_zone(self.workspace.limits, again=True)}
        yield await self._measured(session)

    async def on_restore(self, model, mode, depth, limit, request: gr.Request):
        """Wait for its turn, restore, and tell all the while how far it is."""
        session = self._session(request, Choice(model, mode, depth, limit))
        photo = session.photo
        if photo is None:
            yield {self.status: cards.error("The photo is no longer here, because the connection was lost. Choose it again")}
            return
        if session.job is not None:          # a second click
            return
        job = session.job = Job("Restoring")
        async with session.lock:
            self.engine.queue.submit(job, self._restore, session, photo, session.choice, job)
            busy = {self.restore: gr.Button(interactive=False), self.cancel: gr.Button(visible=True)}
            try:
                while not job.done:
                    yield {**busy, self.status: cards.progress(job, *self.engine.queue.ahead(job))}
                    await asyncio.sleep(_EVERY)
            finally:
                session.job = None
            yield {**await self._view(session), self.status: _outcome(job) or cards.result(session)}

    def on_cancel(self, request: gr.Request):
        """End the page's job."""
        job = self._session(request).job
        if job is not None:
            job.cancel()

    async def on_model(self, model, mode, depth, limit, request: gr.Request):
        """Another network: its depths, its costs."""
        session = self._session(request)
        try:
            slider = await asyncio.to_thread(self._slider, model)
        except RestoreError as error:
            yield {self.status: cards.error(str(error)), self.model: session.choice.model}
            return
        session.choice = Choice(model, BY_DEPTH, slider["value"], limit)
        yield {self.mode: gr.Radio(value=BY_DEPTH, visible=slider["visible"]), self.depth: gr.Slider(**slider),
               self.limit: gr.Number(visible=False), **await self._costs(session)}
        self._start_measuring(model)
        yield await self._measured(session)

    async def on_choice(self, model, mode, depth, limit, request: gr.Request):
        """Another depth or time limit."""
        session = self._session(request, Choice(model, mode, depth, limit))
        return {self.depth: gr.Slider(visible=mode == BY_DEPTH), self.limit: gr.Number(visible=mode == BY_TIME),
                **await self._costs(session)}

    async def on_test(self, kind, sigma, quality, rain, beta, haze, seed, request: gr.Request):
        """Spoil the photo, or take it back."""
        session = self._session(request)
        test = _options(kind, sigma, quality, rain, beta, haze, seed)
        yield self._settings(kind)
        if session.photo is None or session.photo.test == test:
            return
        if session.job is not None:
            session.job.cancel()
        async with session.lock:
            job = Job("Spoiling the photo" if test else "Taking the clean photo back")
            yield {self.status: cards.progress(job)}
            try:
                await self._read(job, session.photo.degrade, test)
            except RestoreError as error:
                yield {self.status: cards.error(str(error))}
                return
            yield {**await self._view(session), self.status: cards.result(session)}

    def close(self):
        """End all work."""
        self.engine.close()
        self.reader.close()

    # ------------------------------------------------------------ work

    def _session(self, request, choice=None):
        session = self.workspace.session(request.session_hash)
        if choice is not None or session.choice is None:
            session.choice = choice or Choice(self.engine.models[0], BY_DEPTH, self._slider(self.engine.models[0])["value"], 10)
        return session

    def _arrived(self, given, session):
        """``(path, name)`` of what the browser says has been uploaded, or of a sample."""
        if given.get("sample") in samples.PHOTOS:
            source = samples.file(given["sample"])
            return shutil.copy(source, session.folder / source.name), source.name
        path = Path(str(given.get("path"))).resolve()
        if self.workspace.uploads.resolve() not in path.parents or not path.is_file():
            raise RestoreError("the upload was lost; try it again")
        return path, str(given.get("name") or path.name)

    async def _read(self, job, function, *args):
        """Run ``function`` on the worker for reading; its errors that are not the user's are told as such."""
        await _ended(self.reader.submit(job, function, *args))
        if job.future.exception() is not None:
            raise _readable(job.future.exception())

    def _restore(self, session, photo, choice, job):
        """On the worker: choose the depth, restore, write the result."""
        try:
            depth = self._depth(choice, photo)
            restorer = self.engine.restorer(choice.model, depth)
            job.what = f"Restoring at depth {depth}" if depth else "Restoring"
            job.expected = self.engine.expected(choice.model, depth, photo.height, photo.width)
            photo.restore((choice.model, depth), lambda pixels: self.engine.run(restorer, pixels, job))
        finally:
            if session.closed or session.photo is not photo:     # what was written for nobody
                shutil.rmtree(photo.folder, ignore_errors=True)

    def _depth(self, choice, photo):
        if choice.mode == BY_TIME:
            return self.engine.choose(choice.model, choice.limit or 0, photo.height, photo.width)
        depths = self.engine.depths(choice.model)
        return depths[min(max(int(choice.depth), 1), len(depths)) - 1]

    def _start_measuring(self, model):
        """Let ``model`` be timed when its turn comes."""
        if model not in self.measuring:
            self.measuring[model] = self.engine.queue.submit(Job("Timing the network", timing=True), self.engine.measure, model)

    async def _measured(self, session):
        """The costs again, once the times are known."""
        job = self.measuring.get(session.choice.model)
        if job is not None and not job.done:
            await _ended(job)
        return await self._costs(session)

    # ------------------------------------------------------------ what is shown

    async def _view(self, session):
        """All that depends on the photo and its result."""
        photo = session.photo
        return {self.viewer: gr.HTML(cards.viewer(session), visible=True), self.facts: cards.facts(photo),
                self.restore: gr.Button(interactive=True), self.cancel: gr.Button(visible=False),
                self.command: cards.command(photo, session.choice.model), **await self._costs(session)}

    async def _costs(self, session):
        return {self.costs: await asyncio.to_thread(self._cost_table, session)}

    def _cost_table(self, session):
        photo, choice = session.photo, session.choice
        if photo is None:
            return ""
        rows = self.engine.costs(choice.model, photo.height, photo.width)
        chosen, problem = None, None
        if choice.mode == BY_DEPTH or rows[0].seconds is not None:
            try:
                chosen = self._depth(choice, photo)
            except RestoreError as error:
                problem = str(error)
        return cards.costs(rows, photo, choice.model, self.engine.parameters(choice.model), chosen, problem)

    def _slider(self, model):
        depths = self.engine.depths(model)
        default = depths.index(self.engine.default_depth(model)) + 1
        names = " · ".join(f"{number} {name}" for number, name in enumerate(depths, 1))
        return {"minimum": 1, "maximum": max(2, len(depths)), "step": 1, "value": default, "label": "Depth", "info": names,
                "visible": len(depths) > 1}

    def _settings(self, kind):
        """The controls that belong to one kind of test."""
        return {component: gr.update(visible=TESTS[kind] in kinds)
                for component, kinds in ((self.sigma, ("noise",)), (self.quality, ("jpeg",)), (self.rain, ("rain",)),
                                         (self.beta, ("haze",)), (self.haze, ("haze",)), (self.seed, ("noise", "rain", "haze")))}


def _titled(*names):
    """Choices that are shown with a capital."""
    return [(name.title(), name) for name in names]


def _options(kind, sigma, quality, rain, beta, haze, seed):
    """What ``restore degrade`` is told, or None for no test."""
    kind, seed = TESTS[kind], ["--seed", str(int(seed or 0))]
    own = {None: None, "noise": ["--sigma", f"{sigma:g}", *seed], "jpeg": ["--quality", f"{quality:g}"],
           "rain": ["--rain", rain, *seed], "haze": ["--haze", haze, "--beta", f"{beta:g}", *seed]}[kind]
    return None if own is None else ["--kind", kind, *own]


async def _ended(job):
    """Wait for ``job``, however it ends."""
    await asyncio.gather(asyncio.wrap_future(job.future), return_exceptions=True)


def _outcome(job):
    """The card for a job that has no result, or None."""
    if job.cancelled:
        return cards.message("Cancelled.")
    error = job.future.exception()
    return None if error is None else cards.error(str(_readable(error)))


def _readable(error):
    """``error`` if it is the user's, else one that points to the terminal, where it is told in full."""
    if isinstance(error, RestoreError):
        return error
    if not isinstance(error, (Cancelled, CancelledError)):
        traceback.print_exception(error)
    return RestoreError("an error of the program, not of the photo; the terminal that it runs in tells more")
