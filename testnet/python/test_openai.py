"""The official `openai` package, unmodified, against the gateway."""

import math

import openai
import pytest


@pytest.fixture(scope="session")
def client(testnet):
    return openai.OpenAI(base_url=testnet["base_url"], api_key=testnet["api_key"], max_retries=0)


QUESTION = [{"role": "user", "content": "What is 12+34?"}]
# A long answer, in which the same letters come again and again.
LONG = [{"role": "user", "content": "What is a voucher? Answer in upper case."}]
# Nothing that the model was trained on, so that it is of many minds.
OPEN = [{"role": "user", "content": "Sing of sea, salt & zebras"}]
# With temperature 2 and this nucleus no two seeds agree for long.
HOT = {"model": "cocoon-tiny", "messages": OPEN, "temperature": 2, "top_p": 0.98, "max_tokens": 40}


def greedy(client, messages=QUESTION, **options):
    return client.chat.completions.create(
        model="cocoon-tiny", messages=messages, temperature=0, **options
    )


def streamed(client, **options):
    """The chunks of a streamed answer, and the texts of its choices."""
    chunks = list(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options)
    )
    texts = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return chunks, texts


def test_models_lists_the_embedded_model_with_its_digest(client):
    ids = [model.id for model in client.models.list()]
    assert len(ids) == 1
    name, digest = ids[0].split("@")
    assert name == "cocoon-tiny"
    assert len(bytes.fromhex(digest)) == 32


def test_a_plain_answer_has_text_usage_and_a_receipt(client):
    answer = client.chat.completions.create(model="cocoon-tiny", messages=QUESTION, temperature=0)
    assert "46" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    receipt = answer.model_extra["cocoon"]
    assert receipt["total"] > 0
    assert [leg["assurance"] for leg in receipt["legs"]] == ["test"]


def test_a_streamed_answer_is_the_plain_one_piece_by_piece(client):
    plain = client.chat.completions.create(model="cocoon-tiny", messages=QUESTION, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="cocoon-tiny",
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_name_at_digest_is_a_model_too(client):
    full = next(iter(client.models.list())).id
    answer = client.chat.completions.create(model=full, messages=QUESTION, temperature=0)
    assert answer.model == full


def test_the_same_seed_gives_the_same_answer(client):
    def ask(seed):
        return client.chat.completions.create(seed=seed, **HOT).choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(6)}) > 1


def test_max_tokens_ends_the_answer_with_length(client):
    answer = client.chat.completions.create(
        model="cocoon-tiny", messages=QUESTION, temperature=0, max_tokens=3
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_a_stop_string_ends_the_answer_before_it(client):
    text = greedy(client, LONG).choices[0].message.content
    stop = text[3:6]
    answer = greedy(client, LONG, stop=stop)
    assert answer.choices[0].message.content == text[: text.index(stop)]


def test_an_unknown_model_is_a_404_that_names_what_there_is(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-nonsense", messages=QUESTION)
    assert refused.value.code == "model_not_found"
    assert "cocoon-tiny" in str(refused.value)


def test_a_prompt_beyond_the_context_is_refused_as_openai_does(client):
    long = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="cocoon-tiny", messages=long)
    assert refused.value.code == "context_length_exceeded"


def test_a_field_nobody_acts_on_is_refused_by_name(client):
    for field, value in [("verbosity", "low"), ("reasoning_effort", "low"), ("store", True)]:
        with pytest.raises(openai.BadRequestError) as refused:
            greedy(client, **{field: value})
        assert refused.value.param == field
        assert refused.value.code == "unsupported_parameter"


def test_fields_that_change_nothing_are_accepted(client):
    labelled = greedy(
        client, user="u", metadata={"a": "b"}, store=False, response_format={"type": "text"}, n=1
    )
    assert labelled.choices[0].message.content == greedy(client).choices[0].message.content


def test_max_completion_tokens_is_the_newer_name_of_max_tokens(client):
    old, new = greedy(client, max_tokens=3), greedy(client, max_completion_tokens=3)
    assert new.choices[0].finish_reason == "length"
    assert new.choices[0].message.content == old.choices[0].message.content
    assert new.usage == old.usage
    with pytest.raises(openai.BadRequestError) as refused:
        greedy(client, max_tokens=3, max_completion_tokens=4)
    assert refused.value.param == "max_completion_tokens"


def test_logprobs_have_openai_s_shape(client):
    answer = greedy(client, LONG, logprobs=True, top_logprobs=4)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    text = b"".join(bytes(entry.bytes or []) for entry in content).decode()
    assert text == answer.choices[0].message.content
    for entry in content:
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 4
        assert tops == sorted(tops, reverse=True)
        assert sum(math.exp(top) for top in tops) < 1 + 1e-4
        # Greedy: the most likely token is the one that was picked.
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, tops[0])


def test_logprobs_do_not_change_with_the_sampling(client):
    def first(**options):
        options = {"messages": OPEN, "max_tokens": 1, "logprobs": True, "top_logprobs": 5} | options
        answer = client.chat.completions.create(model="cocoon-tiny", **options)
        return answer.choices[0].logprobs.content[0].top_logprobs

    plain = first(temperature=0)
    assert first(temperature=2, seed=3) == plain
    assert first(temperature=0, extra_body={"repetition_penalty": 3}) == plain


def test_streamed_logprobs_are_the_plain_ones(client):
    plain = greedy(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    chunks, _ = streamed(
        client, model="cocoon-tiny", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=2
    )
    entries = [
        entry
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert [entry.model_dump() for entry in entries] == [entry.model_dump() for entry in plain]


def test_without_logprobs_there_are_none(client):
    assert greedy(client).choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError) as refused:
        greedy(client, top_logprobs=2)
    assert refused.value.param == "top_logprobs"


def test_n_answers_are_those_of_consecutive_seeds(client):
    singles = [client.chat.completions.create(seed=seed, **HOT) for seed in (7, 8, 9)]
    expected = [single.choices[0].message.content for single in singles]
    answer = client.chat.completions.create(seed=7, n=3, **HOT)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == expected
    assert len(set(expected)) > 1
    # Each answer read the prompt, and each is paid for.
    assert answer.usage.prompt_tokens == sum(single.usage.prompt_tokens for single in singles)
    assert answer.usage.completion_tokens == sum(single.usage.completion_tokens for single in singles)
    receipt = answer.model_extra["cocoon"]
    assert len(receipt["legs"]) == 3
    assert receipt["total"] == sum(leg["cost"] for leg in receipt["legs"])


def test_n_answers_stream_under_their_indices(client):
    plain = client.chat.completions.create(seed=7, n=3, **HOT)
    chunks, texts = streamed(client, seed=7, n=3, **HOT)
    assert texts == {choice.index: choice.message.content for choice in plain.choices}
    ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(end.index for end in ends) == [0, 1, 2]
    assert chunks[-1].usage == plain.usage


def test_n_is_bounded(client):
    with pytest.raises(openai.BadRequestError) as refused:
        greedy(client, n=9)
    assert refused.value.param == "n"


def test_penalties_change_a_repetitive_answer_and_repeat_themselves(client):
    plain = greedy(client, LONG).choices[0].message.content
    assert greedy(client, LONG, frequency_penalty=0, presence_penalty=0).choices[0].message.content == plain
    options = {"frequency_penalty": 2, "presence_penalty": 1, "max_tokens": 60}
    penalised = [greedy(client, LONG, **options).choices[0].message.content for _ in range(2)]
    assert penalised[0] == penalised[1] != plain
    with pytest.raises(openai.BadRequestError) as refused:
        greedy(client, presence_penalty=2.5)
    assert refused.value.param == "presence_penalty"


def test_logit_bias_bans_and_favours_tokens(client):
    # The first 256 ids of the embedded model are bytes, and digits are always written as such.
    plain = greedy(client).choices[0].message.content
    assert "4" in plain
    without = greedy(client, logit_bias={str(ord("4")): -100}).choices[0].message.content
    assert "4" not in without
    only = greedy(client, logit_bias={str(ord("z")): 100}, max_tokens=4).choices[0].message.content
    assert only == "zzzz"
    with pytest.raises(openai.BadRequestError) as refused:
        greedy(client, logit_bias={"100000": 1})
    assert refused.value.param == "logit_bias"


def test_the_common_extensions_work(client):
    plain = greedy(client).choices[0].message.content
    hot = {"model": "cocoon-tiny", "messages": QUESTION, "temperature": 2, "seed": 3}
    for options in [{"top_k": 1}, {"min_p": 1}]:
        answer = client.chat.completions.create(extra_body=options, **hot)
        assert answer.choices[0].message.content == plain, options
    # Upper case is rare enough to be spelled letter by letter.
    spelled = greedy(client, LONG).choices[0].message.content
    stopped = greedy(client, LONG, extra_body={"stop_token_ids": [ord("R")]})
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == spelled[: spelled.index("R")]
    with pytest.raises(openai.BadRequestError) as refused:
        greedy(client, extra_body={"repetition_penalty": 0})
    assert refused.value.param == "repetition_penalty"


def test_a_wrong_key_is_refused(testnet):
    client = openai.OpenAI(base_url=testnet["base_url"], api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_every_response_has_a_request_id(client):
    raw = client.chat.completions.with_raw_response.create(
        model="cocoon-tiny", messages=QUESTION, temperature=0, max_tokens=1
    )
    assert raw.headers["x-request-id"]
