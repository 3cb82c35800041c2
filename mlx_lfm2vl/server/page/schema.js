// What is wrong with a JSON Schema, as far as a browser can say without the server.

const TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"];
const NAMED = ["properties", "patternProperties", "$defs", "definitions"]; // hold schemas by name
const LISTED = ["prefixItems", "allOf", "anyOf", "oneOf"];
const SINGLE = ["items", "additionalProperties"];
const COUNTS = ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];
const NUMBERS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
const DEEPEST = 64; // schemas within each other, as the server takes

/** A schema's text as a value. Throws `SyntaxError` that says what is wrong, and where. */
export function readSchema(text) {
  const schema = JSON.parse(text);
  if (!isObject(schema)) throw new SyntaxError("a schema is an object {...}");
  check(schema, "#", 0);
  return schema;
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function check(schema, place, depth) {
  if (typeof schema === "boolean") return;
  const refuse = (keyword, why) => { throw new SyntaxError(`${place}/${keyword} is ${JSON.stringify(schema[keyword]).slice(0, 80)}, expected ${why}`); };
  const given = (keyword) => Object.hasOwn(schema, keyword);
  if (!isObject(schema)) throw new SyntaxError(`${place} is ${JSON.stringify(schema).slice(0, 80)}, expected a schema {...}`);
  if (depth > DEEPEST) throw new SyntaxError(`more than ${DEEPEST} schemas are within each other`);
  if (given("type")) {
    const types = [schema.type].flat();
    if (!types.length || !types.every((type) => TYPES.includes(type))) refuse("type", `one or several of ${TYPES.join(", ")}`);
  }
  if (given("required") && !(Array.isArray(schema.required) && schema.required.every((name) => typeof name === "string"))) refuse("required", "a list of names");
  if (given("enum") && !(Array.isArray(schema.enum) && schema.enum.length)) refuse("enum", "a list that is not empty");
  for (const keyword of COUNTS) if (given(keyword) && !(Number.isInteger(schema[keyword]) && schema[keyword] >= 0)) refuse(keyword, "a whole number");
  for (const keyword of NUMBERS) if (given(keyword) && typeof schema[keyword] !== "number") refuse(keyword, "a number");
  for (const keyword of NAMED.filter(given)) {
    if (!isObject(schema[keyword])) refuse(keyword, "an object of schemas");
    for (const [name, inner] of Object.entries(schema[keyword])) check(inner, `${place}/${keyword}/${name}`, depth + 1);
  }
  for (const keyword of LISTED.filter(given)) {
    if (!Array.isArray(schema[keyword]) || !schema[keyword].length) refuse(keyword, "a list of schemas");
    schema[keyword].forEach((inner, index) => check(inner, `${place}/${keyword}/${index}`, depth + 1));
  }
  for (const keyword of SINGLE.filter(given)) check(schema[keyword], `${place}/${keyword}`, depth + 1);
}
