"""A client: trains its own model, says what that predicts, and learns from what comes back."""

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_fusion.task import accuracy, batches, learn, load_digits_of, new_model
from fedkd.federation.messages import records as msg
from fedkd.fusion import KnFu

STRATEGY = KnFu(beta=10)  # the server's; a client asks it how guidance is learned
MODEL = "model"

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Learn from pending guidance, then from the client's own samples; upload logits on the common ones."""
    model, digits = _client_of(context)
    round = _learn_guidance(model, digits, message)
    epochs = int(context.run_config["local-epochs"])
    pairs = batches(digits.train_x, digits.train_y, seed=round, epochs=epochs)
    loss = learn(model, pairs, torch.nn.functional.cross_entropy)
    with torch.no_grad():
        logits = model(digits.common_x).numpy()  # [M, C] float32
    _keep(model, context)
    arrays = ArrayRecord({"logits": Array(logits)})
    metrics = {msg.NUM_EXAMPLES: len(digits.train_x), "train_loss": loss}
    return _reply(message, context, metrics, **{msg.ARRAYS: arrays})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the model before and after it has learned from the guidance of this round."""
    model, digits = _client_of(context)
    trained = accuracy(model, digits.test_x, digits.test_y)
    _learn_guidance(model, digits, message)
    _keep(model, context)
    guided = accuracy(model, digits.test_x, digits.test_y)
    metrics = {msg.NUM_EXAMPLES: len(digits.test_x), "accuracy_before_fusion": trained, "accuracy": guided}
    return _reply(message, context, metrics)


def _client_of(context: Context):
    """Return the model as the last message left it, and the client's samples."""
    client, clients = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    model = new_model(client)
    if MODEL in context.state:
        model.load_state_dict(context.state.array_records[MODEL].to_torch_state_dict())
    return model, load_digits_of(client, clients)


def _keep(model, context: Context) -> None:
    context.state[MODEL] = ArrayRecord(model.state_dict())


def _learn_guidance(model, digits, message: Message) -> int:
    """Learn from what the message brings, and return its round. Guidance comes once, with any message."""
    round = int(message.content.config_records[msg.CONFIG][msg.SERVER_ROUND])
    for name in (msg.GUIDANCE, msg.MISSED):
        if name in message.content:
            targets = torch.from_numpy(message.content.array_records[name]["targets"].numpy())  # [M, C]
            learn(model, batches(digits.common_x, targets, seed=round), STRATEGY.loss)
    return round


def _reply(message: Message, context: Context, metrics, **records) -> Message:
    identity = msg.identity(int(context.node_config["partition-id"]))
    content = {msg.IDENTITY: identity, msg.METRICS: MetricRecord(metrics), **records}
    return Message(RecordDict(content), reply_to=message)
