"""Forms of answers through the gateway, with the official `openai` package and requests as other clients send them."""

import json

import openai
import pytest


@pytest.fixture(scope="session")
def client(testnet):
    return openai.OpenAI(base_url=testnet["base_url"], api_key=testnet["api_key"], max_retries=0)


QUESTION = [{"role": "user", "content": "What is 12+34?"}]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def ask(client, **options):
    return client.chat.completions.create(
        model="cocoon-tiny", messages=QUESTION, temperature=0, **options
    )


def of_schema(name="sum"):
    return {"type": "json_schema", "json_schema": {"name": name, "schema": SCHEMA, "strict": True}}


def test_a_schema_is_kept_whole_and_streamed(client):
    answer = ask(client, response_format=of_schema())
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"answer", "sure"} and isinstance(value["answer"], int)
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(ask(client, response_format=of_schema(), stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == answer.choices[0].message.content


def test_a_json_object_is_one(client):
    answer = ask(client, response_format={"type": "json_object"}, max_tokens=60)
    text = answer.choices[0].message.content
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert text.lstrip().startswith("{")


@pytest.mark.parametrize(
    "outputs, fits",
    [
        ({"regex": "[a-c]{3}"}, lambda text: len(text) == 3 and set(text) <= set("abc")),
        ({"choice": ["left", "right"]}, lambda text: text in ("left", "right")),
        ({"grammar": 'start: "up" | "down"'}, lambda text: text in ("up", "down")),
    ],
)
def test_other_forms_that_vllm_knows_are_kept(client, outputs, fits):
    answer = ask(client, extra_body={"structured_outputs": outputs})
    assert fits(answer.choices[0].message.content), answer.choices[0].message.content


def test_every_one_of_several_answers_keeps_its_form(client):
    answer = client.chat.completions.create(
        model="cocoon-tiny",
        messages=QUESTION,
        temperature=1.5,
        n=3,
        extra_body={"structured_outputs": {"choice": ["red", "green", "blue"]}},
        logprobs=True,
    )
    for choice in answer.choices:
        assert choice.message.content in ("red", "green", "blue")
        # What the model believed, not what the form left of it.
        assert all(entry.logprob <= 0 for entry in choice.logprobs.content)
        spelled = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content if entry.bytes)
        # Thoughts come before it.
        assert spelled.decode().endswith(choice.message.content)


@pytest.mark.parametrize(
    "options, field",
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
         "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(client, options, field):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **options)
    assert field in (refused.value.body["param"] or "") + refused.value.body["message"]


def test_usage_tells_what_was_cached(client):
    first = ask(client)
    again = ask(client)
    assert again.usage.prompt_tokens_details.cached_tokens <= again.usage.prompt_tokens
    assert first.usage.completion_tokens_details.reasoning_tokens <= first.usage.completion_tokens
