"""The tiny LLaVA: its geometry and prompt, and that its weights do what their record says."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest
import torch
from prunepass.models import questions
from prunepass.models.questions import WORDS
from prunepass.models.tiny_llava import (
    IMAGE_TOKENS,
    WEIGHTS,
    load_tiny_llava,
    normalised,
    prompt,
    tiny_llava,
)
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tests.models.shipped import check_unseen, check_weights

FRESH = range(50_000, 50_020)  # in neither the training pictures nor the recorded held-out ones


@pytest.fixture(scope="module")
def record() -> dict[str, object]:
    loaded: dict[str, object] = json.loads(WEIGHTS.with_suffix(".json").read_text())
    return loaded


@pytest.fixture(scope="module")
def trained() -> LlavaForConditionalGeneration:
    return load_tiny_llava()


def test_geometry() -> None:
    model = tiny_llava()
    assert model.training
    assert sum(weight.numel() for weight in model.parameters()) == 1_792_896
    assert len(model.model.vision_tower.encoder.layers) == 4
    assert len(model.model.language_model.layers) == 8
    features = model.model.get_image_features(pixel_values=torch.rand(2, 3, 64, 64))
    assert features.pooler_output[0].shape == (IMAGE_TOKENS, 128) == (256, 128)
    asked = torch.tensor([prompt("is there a ring ?")] * 2)
    logits = model(input_ids=asked, pixel_values=torch.rand(2, 3, 64, 64)).logits
    assert logits.shape == (2, asked.shape[1], len(WORDS))


def test_prompt_is_words_around_the_image_tokens() -> None:
    words = [WORDS[number] for number in prompt("what color is the ring ?")]
    assert words[:5] == ["<s>", "look", "at", "the", "picture"]
    assert words[5:261] == ["<image>"] * 256
    assert words[261:] == ["what", "color", "is", "the", "ring", "?", "answer", ":"]
    assert tiny_llava().config.image_token_id == WORDS.index("<image>") == 3


def test_normalised_takes_middle_grey_to_nothing() -> None:
    levels = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 3, 2, 2)
    assert normalised(levels)[:, 1, 0, 0].tolist() == [-2.0, 0.0, 2.0]


def test_weights_are_float16_and_fit_strictly(trained: LlavaForConditionalGeneration) -> None:
    check_weights(WEIGHTS, set(trained.state_dict()))
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}
    assert not trained.training


def test_the_record_names_pictures_that_were_not_trained_on(record: dict[str, object]) -> None:
    check_unseen(record, FRESH)
    assert record["question_generator_version"] == questions.GENERATOR_VERSION


def test_questions_about_fresh_pictures_are_answered(
    record: dict[str, object], trained: LlavaForConditionalGeneration
) -> None:
    recorded = record["accuracy"]
    assert isinstance(recorded, float)
    assert 0.95 <= recorded <= 1.0
    asked = [
        (made.pixels, question)
        for made in map(questions.picture, FRESH)
        for question in made.questions
    ]
    said = _answers(trained, asked)
    right = [word == question.answer for word, (_, question) in zip(said, asked, strict=True)]
    assert sum(right) / len(right) >= 0.95


def test_the_picture_is_what_counts(trained: LlavaForConditionalGeneration) -> None:
    """With the objects' cells greyed out, colours and shapes are hardly better than guessed."""
    asked = []
    for made in map(questions.picture, FRESH[:10]):
        hidden = made.pixels.clone()
        for thing in made.objects:
            row, column = int(thing.y // 16) * 16, int(thing.x // 16) * 16
            hidden[:, row : row + 16, column : column + 16] = 0.6
        asked += [(hidden, question) for question in made.questions[:4]]
    said = _answers(trained, asked)
    right = [word == question.answer for word, (_, question) in zip(said, asked, strict=True)]
    assert sum(right) / len(right) < 0.4


def test_the_answer_is_one_word(trained: LlavaForConditionalGeneration) -> None:
    made = questions.picture(FRESH.start)
    asked = torch.tensor([prompt(made.questions[0].text)])
    said = trained.generate(
        input_ids=asked,
        attention_mask=torch.ones_like(asked),
        pixel_values=normalised(made.pixels[None]),
        max_new_tokens=4,
        do_sample=False,
    )
    answer = [WORDS[number] for number in said[0, asked.shape[1] :].tolist()]
    assert answer == [made.questions[0].answer, "</s>"]


@torch.no_grad()
def _answers(
    model: LlavaForConditionalGeneration, asked: list[tuple[Tensor, questions.Question]]
) -> list[str]:
    """What the model says first to each question about its picture [3, 64, 64]."""
    of_length: dict[int, list[int]] = defaultdict(list)
    for number, (_, question) in enumerate(asked):
        of_length[len(prompt(question.text))].append(number)
    said = [""] * len(asked)
    for numbers in of_length.values():
        logits = model(
            input_ids=torch.tensor([prompt(asked[number][1].text) for number in numbers]),
            pixel_values=normalised(torch.stack([asked[number][0] for number in numbers])),
            logits_to_keep=1,
        ).logits
        for number, word in zip(numbers, logits[:, -1].argmax(1).tolist(), strict=True):
            said[number] = WORDS[word]
    return said
