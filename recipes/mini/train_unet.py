"""Train the U-Net and both text encoders on the frozen autoencoder's latents, in resumable pieces.

Under `torchrun` every process trains on a GPU of its own with other noise, and their gradients are averaged.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recipes.mini.model import LATENT_CHANNELS, SIZE, TOKENS, Components, new_scheduler
from recipes.mini.optimize import FlatAdam, capture, learning_rate
from recipes.mini.pictures import ARTWORK, BASE, CAPTIONS, Store
from recipes.mini.train_vae import encode_all

PEAK = 1.2e-3
GAMMA = 5.0
"""Min-SNR clamp."""
DROP, EMPTY = 0.07, 0.03
"""Shares of captions replaced by zero embeddings and by the empty caption."""


class Data:
    """Latents float16 [n, 2, 12, 16, 16] (scaled mean, deviation), tokens int16 [n, 4, TOKENS], on a device.

    Both grow while pictures are drawn: `update` encodes what is new, and `count` says how many there are.
    It may run in a thread beside the training, which only reads rows below `count`.
    """

    def __init__(self, store: Store, parts: Components, device: torch.device) -> None:
        self.store, self.parts, self.device = store, parts, device
        self.vae = copy.deepcopy(parts.vae).to(device).eval()
        usable = int(np.isin(store.kinds, (BASE, ARTWORK)).sum())
        shape = (2, LATENT_CHANNELS, SIZE // 8, SIZE // 8)
        self.latents = torch.zeros(usable, *shape, dtype=torch.float16, device=device)
        self.tokens = torch.zeros(usable, CAPTIONS, TOKENS, dtype=torch.int16, device=device)
        self.count = torch.zeros((), device=device)
        self.encoded = np.zeros(len(store.kinds), bool)
        self.filled = 0

    def update(self, most: int = 2**31) -> int:
        """Take in at most this many of the pictures drawn since; return how many there are now."""
        ready = self.store.ready()
        fresh = ready[np.isin(self.store.kinds[ready], (BASE, ARTWORK)) & ~self.encoded[ready]][:most]
        for start in range(0, len(fresh), 4096):
            index = fresh[start : start + 4096]
            rows = slice(self.filled, self.filled + len(index))
            self.latents[rows] = torch.from_numpy(encode_all(self.vae, self.store, index, self.device)).to(
                self.device
            )
            self.tokens[rows] = torch.from_numpy(tokenize(self.parts, self.store.captions[index])).to(
                self.device
            )
            self.filled += len(index)
        self.encoded[fresh] = True
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self.count.fill_(self.filled)
        return self.filled


class Step:
    """One training step whose every random choice is made on the device, so that it can be captured whole."""

    def __init__(
        self, parts: Components, data: Data, batch: int, *, compiled: bool, channels_last: bool
    ) -> None:
        device = data.device
        self.data, self.batch, self.device = data, batch, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        parts = replace(parts, **{name: copy.deepcopy(getattr(parts, name)) for name in Components.DENOISER})
        self.modules = [module.to(device).train() for module in parts.denoiser]
        self.unet, self.first, self.second = self.modules
        self.optimizer = FlatAdam(self.modules, self.dtype)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.run = torch.compile(self.unet) if compiled else self.unet
        self.kept = new_scheduler().alphas_cumprod.to(device)  # [1000]
        self.empty = _empty_tokens(parts).to(device)
        self.usual = torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE], dtype=torch.float32, device=device)
        self.source = torch.tensor([1, 1, 0, 0, 0, 0], dtype=torch.bool, device=device)
        self.loss = torch.zeros((), device=device)

    def __call__(self) -> None:
        """Draw a batch, predict its noise, update."""
        self.backward()
        self.optimizer.step()

    def backward(self) -> None:
        """Draw a batch, predict its noise, add to the gradients."""
        b, device = self.batch, self.device
        row = (torch.rand(b, device=device) * self.data.count).long()
        mean, spread = self.data.latents[row].float().unbind(1)
        clean = mean + spread * torch.randn_like(mean)
        noise = torch.randn_like(clean)
        timestep = torch.randint(1000, (b,), device=device)
        kept = self.kept[timestep]
        weight = (GAMMA * (1 - kept) / kept).clamp(max=1.0)  # min(snr, gamma) / snr
        kept = kept[:, None, None, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        chance = torch.rand(b, device=device)
        variant = torch.randint(self.data.tokens.shape[1], (b,), device=device)
        tokens = self.data.tokens[row, variant].long()
        tokens = torch.where((chance > 1 - EMPTY)[:, None], self.empty, tokens)
        text, pooled = self.encode(tokens)
        keep = (chance >= DROP).to(self.dtype)
        added = {"text_embeds": pooled * keep[:, None], "time_ids": self._sizes().to(self.dtype)}
        noisy = noisy.to(self.dtype).contiguous(memory_format=self.layout)
        text = text * keep[:, None, None]
        predicted = self.run(noisy, timestep, text, added_cond_kwargs=added, return_dict=False)[0]
        loss = (weight * (predicted.float() - noise).square().mean(dim=(1, 2, 3))).mean()
        loss.backward()
        self.loss.add_(loss.detach())

    def encode(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [b, TOKENS] -> SDXL's text states [b, TOKENS, 160] and pooled text [b, 96]."""
        first = self.first(tokens, output_hidden_states=True)
        second = self.second(tokens, output_hidden_states=True)
        return torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=2), second.text_embeds

    def _sizes(self) -> torch.Tensor:
        """SDXL's size ids [b, 6]: mostly this size uncropped, sometimes another source size, of no effect."""
        usual = self.usual.expand(self.batch, 6)
        other = 64 + 1984 * torch.rand(self.batch, 6, device=self.device).square()
        change = self.source & (torch.rand(self.batch, 1, device=self.device) < 0.1)
        return torch.where(change, other, usual)


def prepare(step: Step, *, graph: bool) -> Callable[[], None]:
    """Run once (compiling), fall back to the plain U-Net if the compiler fails, then capture."""

    def uncompile() -> bool:
        was_compiled, step.run = step.run is not step.unet, step.unet
        step.optimizer.gradients.zero_()
        return was_compiled

    optimizer = step.optimizer
    optimizer.set(0.0, 0)
    if processes() == 1:
        return capture(step, uncompile, graph=graph)
    backward = capture(step.backward, uncompile, graph=graph)
    update = capture(optimizer.step, lambda: False, graph=graph)
    optimizer.take_from_first()

    def replay() -> None:
        backward()
        torch.distributed.all_reduce(optimizer.gradients)
        optimizer.gradients.div_(processes())
        update()

    return replay


def rank() -> int:
    """The number of this process among those that train together."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _update(data: Data) -> None:
    """Take in some of the pictures drawn since, from another thread: on a stream of its own."""
    if data.device.type != "cuda":
        data.update(8192)
        return
    device = data.count.device
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        data.update(8192)


def _of_first(value: float, device: torch.device) -> float:
    """A number of the first process, by which all decide alike."""
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    if processes() > 1:
        torch.distributed.broadcast(shared, 0)
    return float(shared)


def train_unet(
    parts: Components,
    work: Path,
    device: torch.device,
    *,
    total_seconds: float,
    piece_seconds: float,
    batch: int,
    compiled: bool,
    channels_last: bool,
    graph: bool,
    peak: float = PEAK,
    max_steps: int,
    seen: Callable[[], None],
) -> dict[str, float]:
    """Train for one piece of at most `piece_seconds`; the schedule spans `total_seconds` over all pieces.

    The averaged weights are written into `parts`, the state to go on from into `work/unet_state.pt`. Every
    two minutes, once the weights of that time are in `parts`, `seen` is called.
    """
    entered = time.monotonic()
    torch.manual_seed(5 + int(entered) % 1000 + 1000 * rank())
    data = Data(Store(work), parts, device)
    while data.update() < min(8192, len(data.latents) // 2):
        time.sleep(1)
    step = Step(parts, data, batch, compiled=compiled, channels_last=channels_last)
    steps, seconds = 0, 0.0
    state_file = work / "unet_state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        step.optimizer.load_state_dict(state["optimizer"])
        steps, seconds = state["steps"], state["seconds"]
    replay = prepare(step, graph=graph)
    step.loss.zero_()
    begun = last_log = time.monotonic()
    print(
        f"unet: {data.filled} pictures, ready after {begun - entered:.0f} s, from step {steps}",
        flush=True,
    )
    left = _of_first(min(total_seconds - seconds, piece_seconds - (begun - entered)), device)
    logged_steps, stop, shown = steps, steps + max_steps, begun
    start, interval = steps, 10 if device.type == "cuda" else 1
    with ThreadPoolExecutor(1) as beside:
        updating = beside.submit(_update, data)
        while steps < stop:
            now = time.monotonic()
            if (steps - start) % interval == 0:
                trained = _of_first(now - begun, device)  # waits for the device
                if trained >= left:
                    break
                if updating.done():
                    updating.result()
                    updating = beside.submit(_update, data)
            share = (seconds + trained) / total_seconds
            step.optimizer.set(learning_rate(peak, steps, share, warm_up=400), steps)
            replay()
            steps += 1
            if now - last_log > 15:
                done = steps - logged_steps
                line = f"step {steps} loss {float(step.loss) / done:.4f}"
                line += f" norm {float(step.optimizer.norm):.2f} {done / (now - last_log):.1f}/s"
                line += f" {data.filled} pictures"
                print(f"unet {seconds + now - begun:4.0f}s {line}", flush=True)
                step.loss.zero_()
                last_log, logged_steps = now, steps
            if now - shown > 120 and rank() == 0:
                step.optimizer.write_average(parts.denoiser)
                seen()
                shown = now
    seconds += time.monotonic() - begun
    step.optimizer.write_average(parts.denoiser)
    state = {"optimizer": step.optimizer.state_dict(), "steps": steps, "seconds": seconds}
    if rank() == 0:
        torch.save(state, state_file)
    return {
        "steps": steps,
        "seconds": round(seconds, 1),
        "batch": batch * processes(),
        "share": round(seconds / total_seconds, 3),
    }


def measure(
    parts: Components,
    work: Path,
    device: torch.device,
    batch: int,
    *,
    graph: bool,
    compilers: tuple[bool, ...],
    steps: int,
) -> dict[str, float]:
    """Seconds per step of every execution mode; the compiled modes also warm the compiler's cache."""
    times = {}
    data = Data(Store(work), parts, device)
    data.update()
    for compiled in compilers:
        for channels_last in (False, True):
            begun = time.monotonic()
            step = Step(parts, data, batch, compiled=compiled, channels_last=channels_last)
            replay = prepare(step, graph=graph)
            ready = time.monotonic()
            for _ in range(steps):
                replay()
            _ = float(step.loss)  # wait for the device
            step_seconds = (time.monotonic() - ready) / steps
            name = (
                f"{'compiled' if compiled else 'eager'} {'channels-last' if channels_last else 'contiguous'}"
            )
            times[name] = round(step_seconds, 4)
            print(
                f"unet speed: {name}: {1000 * step_seconds:.1f} ms a step, ready after {ready - begun:.0f} s",
                flush=True,
            )
            del step, replay
    return times


def tokenize(parts: Components, captions: np.ndarray) -> np.ndarray:
    """Captions (bytes) [n, k] -> token ids int16 [n, k, TOKENS]."""
    texts = [text.decode() for text in captions.reshape(-1)]
    rows = [
        np.asarray(
            parts.tokenizer(
                texts[start : start + 20_000], padding="max_length", truncation=True, max_length=TOKENS
            ).input_ids,
            np.int16,
        )
        for start in range(0, len(texts), 20_000)
    ]
    return np.concatenate(rows).reshape(*captions.shape, TOKENS)


def _empty_tokens(parts: Components) -> torch.Tensor:
    return torch.tensor(parts.tokenizer("", padding="max_length", max_length=TOKENS).input_ids)
