"""A head with layer normalisation."""

from dataclasses import dataclass

import dogbreeds


@dataclass(frozen=True, kw_only=True)
class NormHead(dogbreeds.Head):
    """Layer normalisation, dropout, dense. dogbreeds adds the last layer, with one logit for each class."""

    dropout: float = dogbreeds.number(at_least=0, below=1, example=0.2)

    def hidden(self, seed: int) -> list:
        import keras

        return [keras.layers.LayerNormalization(), keras.layers.Dropout(self.dropout, seed=seed)]
