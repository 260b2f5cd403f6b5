"""JSON schema of a recipe file, for completion and checks in editors."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from mtl_dist.config.recipe import Recipe

_INTERPOLATION = {"type": "string", "pattern": r"\$\{"}


def recipe_json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of one recipe file.

    It accepts what the loader accepts of a single file: a string where a list of strings is wanted, and `${...}`
    interpolations in place of numbers, booleans and names to choose from. Rules that involve several keys are not part
    of it.
    """
    schema = Recipe.model_json_schema(schema_generator=_RecipeSchema)
    del schema["$defs"]["SourceConfig"]["required"]  # a file may change some keys of what another file defines
    described = {"title": "mtl_dist recipe", "description": "Recipe of a training run of mtl_dist."}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, **described}


class _RecipeSchema(GenerateJsonSchema):
    """Pydantic's schema generator, with interpolations accepted and without titles derived from field names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_interpolation(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_interpolation(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_interpolation(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return _or_interpolation(super().literal_schema(schema))


def _or_interpolation(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {"anyOf": [schema, _INTERPOLATION]}
