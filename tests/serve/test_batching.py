"""Batches of images: when they start, what they leave out, and how many images are decoded."""

import asyncio
import threading
import time

import numpy as np
import pytest

from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.decode.image import CorruptImageError, from_array
from repvgg_jax.serve.batching import Batcher
from repvgg_jax.serve.model import Model

IMAGE = from_array(np.zeros((2, 2, 3), np.uint8))


class Held:
    """A model that computes nothing until it is released."""

    def __init__(self):
        self.released = threading.Event()
        self.model = Model("held", ("a",), Transform("resized_crop", 2, resize=2), self.run)

    def run(self, images):
        assert self.released.wait(60)
        return np.ones((len(images), 1), np.float32)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_batch_does_not_wait_for_an_image_that_cannot_be_decoded():
    held, sizes = Held(), []
    held.released.set()

    def damaged():
        time.sleep(0.1)
        raise CorruptImageError("b.jpg", "it is damaged")

    async def classify():
        async with Batcher(held.model, 4, 600, 2, sizes.append) as batcher:
            good = asyncio.create_task(batcher.classify(lambda: IMAGE))
            bad = asyncio.create_task(batcher.classify(damaged))
            await asyncio.wait_for(good, 60)
            with pytest.raises(CorruptImageError):
                await bad

    asyncio.run(classify())
    assert sizes == [1]


def test_cancelled_images_are_not_in_a_batch():
    held, sizes = Held(), []

    async def classify():
        async with Batcher(held.model, 2, 0, 1, sizes.append) as batcher:
            first, left, *others = (batcher.classify(lambda: IMAGE) for _ in range(4))
            tasks = [asyncio.create_task(first)]
            await until(lambda: sizes == [1])
            tasks += [asyncio.create_task(each) for each in (left, *others)]
            await until(lambda: len(batcher._rows) == 3)
            tasks[1].cancel()
            held.released.set()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(classify())
    assert sizes == [1, 2]


def test_few_images_are_decoded_ahead_of_the_net():
    held, opened = Held(), []

    def counted():
        opened.append(True)
        return IMAGE

    async def classify():
        async with Batcher(held.model, 2, 0, 1, lambda size: None) as batcher:
            tasks = [asyncio.create_task(batcher.classify(counted)) for _ in range(20)]
            await until(lambda: len(opened) >= 5)
            await asyncio.sleep(0.05)
            assert len(opened) == 5  # two batches and an image for the thread that decodes
            held.released.set()
            assert np.shape(await asyncio.gather(*tasks)) == (20, 1)

    asyncio.run(classify())
