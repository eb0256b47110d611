"""The official `openai` package, unmodified, against the gateway."""

import openai
import pytest


@pytest.fixture(scope="session")
def client(testnet):
    return openai.OpenAI(base_url=testnet["base_url"], api_key=testnet["api_key"], max_retries=0)


QUESTION = [{"role": "user", "content": "What is 12+34?"}]


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
    # Nothing that the model was trained on, so that it is of many minds.
    question = [{"role": "user", "content": "Sing of sea, salt & zebras"}]

    def ask(seed):
        answer = client.chat.completions.create(
            model="cocoon-tiny", messages=question, temperature=2, top_p=0.98, seed=seed, max_tokens=40
        )
        return answer.choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(6)}) > 1


def test_max_tokens_ends_the_answer_with_length(client):
    answer = client.chat.completions.create(
        model="cocoon-tiny", messages=QUESTION, temperature=0, max_tokens=3
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_a_stop_string_ends_the_answer_before_it(client):
    whole = client.chat.completions.create(model="cocoon-tiny", messages=QUESTION, temperature=0)
    text = whole.choices[0].message.content
    stop = text[3:6]
    answer = client.chat.completions.create(
        model="cocoon-tiny", messages=QUESTION, temperature=0, stop=stop
    )
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
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="cocoon-tiny", messages=QUESTION, logit_bias={"5": 1})
    assert refused.value.param == "logit_bias"


def test_a_wrong_key_is_refused(testnet):
    client = openai.OpenAI(base_url=testnet["base_url"], api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_every_response_has_a_request_id(client):
    raw = client.chat.completions.with_raw_response.create(
        model="cocoon-tiny", messages=QUESTION, temperature=0, max_tokens=1
    )
    assert raw.headers["x-request-id"]
